"""Timing of parts of a stage, which run in pieces, as separate stages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class _Open(threading.local):
    """Seconds by part of the thread's current stage; ``None`` outside of a stage."""

    parts: dict[str, float] | None = None


_open = _Open()


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Collect the seconds of the parts in a block, by name, in the yielded dictionary."""
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
