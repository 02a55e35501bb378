"""Bundles: manifest, reader and writer."""
