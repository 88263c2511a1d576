"""Finds operators to leave float if over the budget."""
