"""The model in use: loading, live changes and releases."""
