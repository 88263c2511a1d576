"""Which operators are worth running in INT8."""
