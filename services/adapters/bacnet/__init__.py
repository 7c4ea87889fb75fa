"""Receives events from bacnet devices."""
