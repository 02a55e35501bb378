"""Folders in an object store: copies of them here, and releases that an endpoint follows."""
