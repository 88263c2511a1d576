"""What an artifact is worth: its metrics in the module's own loop, its fidelity to FP32, its latency."""
