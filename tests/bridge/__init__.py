"""Gateways that are joined to a central broker by lines that fail; `python -m tests.bridge`."""
