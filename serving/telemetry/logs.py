"""JSON log lines on standard error, one object per line.

Ray stores a replica's standard error in its session directory; ``setrec serve --log requests`` shows it as well.
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
    """Configure logging of failures only, or of every request as well."""
    if not _LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Json())
        _LOGGER.addHandler(handler)
        _LOGGER.propagate = False
    _LOGGER.setLevel(logging.INFO if log == "requests" else logging.WARNING)


def logs_requests() -> bool:
    """Return whether requests are logged."""
    return _LOGGER.isEnabledFor(logging.INFO)


def info(event: str, **fields: Any) -> None:
    """Log an event, unless only failures are logged."""
    if logs_requests():
        _LOGGER.info(event, extra={"fields": fields})


def warning(event: str, **fields: Any) -> None:
    """Log a problem that was handled."""
    _LOGGER.warning(event, extra={"fields": fields})


def failure(event: str, **fields: Any) -> None:
    """Log the exception being handled, with its traceback."""
    _LOGGER.error(event, exc_info=True, extra={"fields": fields})


class Seldom:
    """Rate-limited warnings: at most one line per event and error every ``seconds``.

    The next line reports the number ``left_out`` since the previous one. Thread-safe.
    """

    _REASONS = 64  # maximum number of distinct errors, as texts are arbitrary; beyond it only events are distinct

    def __init__(self, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock, self._lock = seconds, clock, threading.Lock()
        self._said: dict[tuple[str, str], tuple[float, int]] = {}  # time of the last line, and number left out since

    def warning(self, event: str, error: str) -> None:
        """Log a problem that was handled, unless the same was logged less than ``seconds`` ago."""
        now = self._clock()
        with self._lock:
            known = (event, error) in self._said or len(self._said) < self._REASONS
            reason = (event, error if known else "")
            at, left_out = self._said.get(reason, (now - self._seconds, 0))
            is_due = now - at >= self._seconds
            self._said[reason] = (now, 0) if is_due else (at, left_out + 1)
        if is_due:
            warning(event, error=error, **({"left_out": left_out} if left_out else {}))
