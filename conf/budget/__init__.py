"""How far a metric may drop."""
