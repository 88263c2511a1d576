"""Float graphs, where quantization goes in them, and what was seen in them."""
