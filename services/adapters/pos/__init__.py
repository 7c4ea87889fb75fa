"""Tills and cash registers: receipt text over TCP, UDP and serial lines."""
