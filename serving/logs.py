"""JSON log lines: one object a line, on standard error, for machines to read.

Ray keeps a replica's standard error in its session directory; ``setrec serve --log requests`` shows it as well.
"""

from __future__ import annotations

import json
import logging
import sys
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
