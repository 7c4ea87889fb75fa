"""Receives events from ONVIF devices."""
