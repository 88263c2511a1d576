"""Damaged files: what is read from outside is read, or refused by a named error, whatever is in it."""
