"""Observers during validation, INT8 after fit."""
