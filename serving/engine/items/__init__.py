"""The current items."""
