"""Asks devices that serve their events over HTTP: polls, long polls, log channels, WebSockets."""
