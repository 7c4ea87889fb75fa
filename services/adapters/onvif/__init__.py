"""Receives events from onvif devices."""
