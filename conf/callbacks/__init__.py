"""Lightning's own callbacks."""
