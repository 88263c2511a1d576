"""Recipes: each folder holds the model and data code of one run, and a card with what it measured."""
