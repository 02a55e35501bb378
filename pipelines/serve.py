"""Serving from the command line: an endpoint until interrupted, or one answer without a server."""

from __future__ import annotations
