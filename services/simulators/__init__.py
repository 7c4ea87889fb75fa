"""Strict stand-ins for the two targets, the VMS and Camio: for the demo, tests, chaos and bench."""
