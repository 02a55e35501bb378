"""Folders in an object store: local copies, and releases that an endpoint follows."""
