"""Maps each event to the cameras that see its sensor, and to the targets that must learn of it."""
