"""Files and directories that are either there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write to; it takes the name ``path`` when the block ends without an error.

    Readers see the old file or the new one, never a part. The parent directory is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A temporary sibling directory to fill; it takes the place of ``path`` when the block ends without an error.

    After an error what was at ``path`` is untouched. A directory cannot be replaced in one system call everywhere,
    so an earlier one is moved aside for an instant and moved back should the second move fail.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        new = work / "new"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(work / "old")
        try:
            new.rename(path)
        except OSError:
            if (work / "old").exists():
                (work / "old").rename(path)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
