"""Thin adapters from Trainer hooks to the plain functions of the package."""
