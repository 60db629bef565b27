"""Measurements of networks: counts, latency, memory, and the time of each layer."""
