"""The section ``data`` of a configuration, under its earlier name: see ``pipelines.data.settings``."""

from pipelines.data.settings import DataSettings

__all__ = ["DataSettings"]
