"""ESPA 4.4.4: fire panels and nurse-call systems that page over a serial line."""
