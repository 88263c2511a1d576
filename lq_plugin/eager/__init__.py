"""INT8 layers of eager torch: which layers of a module become INT8, and how one layer does."""
