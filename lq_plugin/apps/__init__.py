"""Commands: Hydra mains over the callbacks."""
