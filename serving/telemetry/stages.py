"""Where the time of a stage goes when a part of it, done piece by piece, counts as a stage of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class _Open(threading.local):
    """The parts of the stage that this thread is in, in seconds; ``None`` outside of any."""

    parts: dict[str, float] | None = None


_open = _Open()


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Collect the seconds of the parts in a block, by name, into the dictionary given."""
    before, _open.parts = _open.parts, {}
    try:
        yield _open.parts
    finally:
        _open.parts = before


@contextmanager
def part(name: str) -> Iterator[None]:
    """Count a block as part ``name`` of the stage around it; without one it costs a microsecond."""
    parts = _open.parts
    if parts is None:
        yield
        return
    began = perf_counter()
    try:
        yield
    finally:
        parts[name] = parts.get(name, 0.0) + perf_counter() - began
