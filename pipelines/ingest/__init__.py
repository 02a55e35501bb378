"""Raw tables to a data directory: :mod:`pipelines.ingest.ingest` writes one, :func:`load` reads it back."""

from pipelines.data.directory import load

__all__ = ["load"]
