"""Tells Camio of access events, and keeps its list of devices in step with the site file."""
