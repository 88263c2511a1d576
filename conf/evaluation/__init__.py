"""FP32 beside INT8: metrics, latency, size."""
