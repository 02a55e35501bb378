"""The items as they stand now."""
