"""Indexes, filters and their tuning."""
