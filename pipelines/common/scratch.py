"""Temporary folders on this machine for files that are moved elsewhere."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setrec.atomic import abandoned, held_folder


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Create a folder that is removed after the block; folders of killed processes are removed first."""
    place = Path(tempfile.gettempdir())
    for old in abandoned(place, f"{name}-"):
        shutil.rmtree(old, ignore_errors=True)
    with held_folder(place, f"{name}-") as folder:
        yield folder
