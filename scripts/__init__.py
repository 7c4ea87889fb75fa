"""Helpers for those who work on Tocsin. Not part of what is installed."""
