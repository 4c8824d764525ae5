"""`ray-weights doctor`: facts are collected by probes, and judged by pure functions."""
