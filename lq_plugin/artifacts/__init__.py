"""Artifacts on disk: one module a format, each with ``export`` and ``load``."""
