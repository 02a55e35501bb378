"""JSON log lines: one object a line, on standard error, for machines to read.

Ray keeps a replica's standard error in its session directory; ``setrec serve --log requests`` shows it as well.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

_LOGGER = logging.getLogger("setrec.serving")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(log: Literal["errors", "requests"]) -> None:
    """Write failures alone, or also a line for each request."""
    if not _LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Json())
        _LOGGER.addHandler(handler)
        _LOGGER.propagate = False
    _LOGGER.setLevel(logging.INFO if log == "requests" else logging.WARNING)


def info(event: str, **fields: Any) -> None:
    """Write a line, unless only failures are wanted."""
    if _LOGGER.isEnabledFor(logging.INFO):
        _LOGGER.info(event, extra={"fields": fields})


def warning(event: str, **fields: Any) -> None:
    """Write a line about what went wrong and was dealt with."""
    _LOGGER.warning(event, extra={"fields": fields})


def failure(event: str, **fields: Any) -> None:
    """Write a line about the exception being handled, with its traceback."""
    _LOGGER.error(event, exc_info=True, extra={"fields": fields})


class Seldom:
    """Warnings of which an outage makes thousands: a line per event and error every ``seconds`` at most.

    The next line says how many were ``left_out`` since the one before. Threads may share it.
    """

    _REASONS = 64  # told apart; an error's text may hold anything, and beyond these an event is one reason

    def __init__(self, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock, self._lock = seconds, clock, threading.Lock()
        self._said: dict[tuple[str, str], tuple[float, int]] = {}  # when last, and how many were left out since

    def warning(self, event: str, error: str) -> None:
        """Write a line about what went wrong and was dealt with, unless one like it was written a moment ago."""
        now = self._clock()
        with self._lock:
            known = (event, error) in self._said or len(self._said) < self._REASONS
            reason = (event, error if known else "")
            at, left_out = self._said.get(reason, (now - self._seconds, 0))
            is_due = now - at >= self._seconds
            self._said[reason] = (now, 0) if is_due else (at, left_out + 1)
        if is_due:
            warning(event, error=error, **({"left_out": left_out} if left_out else {}))
