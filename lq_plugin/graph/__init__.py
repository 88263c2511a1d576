"""Float graphs, where they are quantized, and the statistics of their values."""
