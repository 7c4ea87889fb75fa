"""Receives events from cameras, recorders and access terminals that keep an HTTP stream of them open."""
