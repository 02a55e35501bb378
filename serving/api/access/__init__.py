"""Authentication and limits."""
