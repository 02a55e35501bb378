"""Layers of a causal backbone in compiled passes, on a CPU."""
