"""The engine that answers just now."""

from __future__ import annotations

from serving.engine import Engine


class Live:
    """Holds the engine in use, so that another can take its place while requests are answered.

    Whoever answers a request reads ``engine`` once and keeps to it: an answer comes from one model as a whole.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def swap(self, engine: Engine) -> Engine:
        """Put ``engine`` in use from the next request on; the one before is returned, still usable."""
        before, self.engine = self.engine, engine
        return before
