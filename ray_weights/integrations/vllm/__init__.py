"""vLLM: the load format "ray_weights", its options, and capture from a running engine."""
