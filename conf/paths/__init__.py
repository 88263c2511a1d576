"""Where a run writes."""
