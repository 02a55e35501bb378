"""Baselines of the graph language model."""
