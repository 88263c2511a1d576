"""Which operators are worth computing on integers."""
