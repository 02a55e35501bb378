"""Scoring and ranking of candidates."""
