"""Receives events that vendors' clouds and panels push over HTTP."""
