"""Where the jobs of -m run, and what chooses them."""
