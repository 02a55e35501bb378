"""Opponents of the graph language model."""
