"""Receives data changes and alarms of OPC UA servers."""
