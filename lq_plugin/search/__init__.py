"""Which operators cost accuracy."""
