"""Receives events from devices that send syslog."""
