"""OSDP: card readers and door devices on RS-485 lines, by serial port or TCP; the control panel's side."""
