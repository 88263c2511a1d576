"""Comparisons with other tools; never part of the package and never needed by it."""
