"""Make INT8 more accurate; run after fit."""
