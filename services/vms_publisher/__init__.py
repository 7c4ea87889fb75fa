"""Raises the VMS's custom events: one for each camera that sees a sensor, with that camera's own token."""
