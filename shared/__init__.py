"""What every Tocsin service stands on. Knows no service."""
