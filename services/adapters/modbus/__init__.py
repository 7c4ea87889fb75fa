"""Receives the states of Modbus devices by polling them."""
