"""The model in use: load, change, follow, swap."""
