"""One job at a time over a folder."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from setrec.errors import ConfigError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` until the block ends.

    It is the operating system that holds it for the process, so one that was killed holds nothing: there are no stale
    locks to be told from others by process numbers, which repeat, and not on another machine. The file says who has it.

    Raises:
        ConfigError: another process has it; the message says which.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{path.parent}: another run is under way ({_holder(path)})") from None
        file.truncate(0)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump({"host": platform.node(), "pid": os.getpid(), "started": started}, file)
        file.flush()
        yield
        file.truncate(0)


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        return f"process {found['pid']} on {found['host']} since {found['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not said its name"
