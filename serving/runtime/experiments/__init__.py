"""Experiments: traffic splits between two bundles, exposure logs and reports."""
