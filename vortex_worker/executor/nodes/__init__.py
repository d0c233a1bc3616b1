"""Built-in nodes."""
