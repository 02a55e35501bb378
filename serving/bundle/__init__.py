"""Bundles: manifest, reader, writer."""
