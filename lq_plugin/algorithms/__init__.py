"""Algorithms that make a graph easier to quantize; each is a pure function of a candidate and samples."""
