"""One job at a time over a folder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from setrec.errors import ConfigError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` until the block ends. The file names the process that holds it.

    The operating system holds the lock for the process, so a killed process releases it.

    Raises:
        ConfigError: another process holds it; the message names the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{path.parent}: another job is under way ({_holder(path)})") from None
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        path.write_text(json.dumps({"host": platform.node(), "pid": os.getpid(), "started": started}))
        yield
        path.write_text("")
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        return f"process {found['pid']} on {found['host']} since {found['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"
