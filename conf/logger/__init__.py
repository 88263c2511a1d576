"""Lightning's loggers."""
