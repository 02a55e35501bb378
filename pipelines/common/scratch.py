"""Folders of this machine's own for what is on its way elsewhere."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setrec.atomic import abandoned, held_folder


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A new folder, gone with the block; those of processes that were killed inside theirs go first."""
    place = Path(tempfile.gettempdir())
    for old in abandoned(place, f"{name}-"):
        shutil.rmtree(old, ignore_errors=True)
    with held_folder(place, f"{name}-") as folder:
        yield folder
