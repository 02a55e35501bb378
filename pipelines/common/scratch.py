"""Folders of this machine's own for what is on its way elsewhere."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_YOUNG = 60.0
"""Seconds within which a folder may still be about to be locked."""


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A new folder, gone with the block; those of processes that were killed inside theirs go first.

    The operating system holds a lock on the folder for its process, so a folder that nobody holds belongs to the dead.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{name}-*"):
        _clear(old)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", ignore_cleanup_errors=True) as folder:
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(folder)
        finally:
            os.close(held)


def _clear(folder: Path) -> None:
    """Remove a folder that no process holds; somebody else's, or one that is just being made, stays."""
    try:
        if folder.is_symlink() or time.time() - folder.stat().st_mtime < _YOUNG:
            return
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(held)
