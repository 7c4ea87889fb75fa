"""What every Tocsin service stands on. Knows no service."""

__version__ = "0.1.0"
"""Tocsin's. Not asked of the installation: importlib.metadata takes 2 MB and 20 ms of each service."""
