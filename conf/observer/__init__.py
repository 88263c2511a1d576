"""How ranges are found; each has its own options."""
