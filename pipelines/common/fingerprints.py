"""Hashes of the content of files. Unchanged files are detected by size, time and inode where that is enough.

Imports neither torch nor Ray, so that a nightly run without changes ends in a second.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from setrec.atomic import atomic_file

PACKAGES = ("setrec", "nodetok", "pipelines", "serving")
ABSENT = "absent"
"""The hash of a missing file."""


def of_value(value: Any) -> str:
    """Return the hash of plain values (as in JSON), independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def of_code() -> str:
    """Return the hash of this project's Python files. Any change of them may change any result."""
    return _of_files(PACKAGES, of_file)


def of_statements(packages: tuple[str, ...]) -> str:
    """Return the hash of the statements in the Python files of packages, without layout, comments and docstrings. A
    hundred times slower than :func:`of_code`, for results that took hours."""
    return _of_files(packages, _statements)


def _of_files(packages: tuple[str, ...], read: Callable[[Path], str]) -> str:
    home, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    for package in packages:
        for path in sorted((home / package).rglob("*.py")):
            digest.update(f"{path.relative_to(home)}\0{read(path)}\0".encode())
    return digest.hexdigest()


def _statements(path: Path) -> str:
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def of_file(path: str | Path) -> str:
    """Return the hash of a file's content."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class Hashes:
    """Hashes of files by content. A file with unchanged size, modification time and inode is not read again.

    Hashes are stored in ``memory``, a JSON file; without it all files are read again, with the same result.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = {}
        if memory.is_file():
            try:
                self._known = dict(json.loads(memory.read_text()))
            except (ValueError, TypeError):
                self._known = {}

    def of_path(self, path: str | Path) -> str:
        """Return the hash of a file, of a folder with its content, or of a remote location; :data:`ABSENT` if it does
        not exist. A remote file is identified by its size and modification time."""
        if is_remote(path):
            return _of_remote(str(path))
        path = Path(path)
        if path.is_dir():
            return of_value([[str(file.relative_to(path)), self._of_file(file)] for file in _files(path)])
        return self._of_file(path) if path.is_file() else ABSENT

    def save(self) -> None:
        """Store the hashes for the next run."""
        here = {name: found for name, found in self._known.items() if Path(name).is_file()}
        with atomic_file(self._memory) as temporary:
            temporary.write_text(json.dumps(here))

    def _of_file(self, path: Path) -> str:
        name, stat = str(path.resolve()), path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(name)
        if known is not None and known[:3] == mark:
            return str(known[3])
        found = of_file(path)
        self._known[name] = [*mark, found]
        return found


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Return the first name whose hash differs, or that was added or removed; ``None`` if all are equal."""
    names = [*now, *(name for name in before if name not in now)]
    return next((name for name in names if before.get(name) != now.get(name)), None)


def is_remote(path: str | Path) -> bool:
    """Return whether ``path`` is a URI such as ``s3://bucket/key`` and not a local path."""
    return "://" in str(path)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _of_remote(uri: str) -> str:
    from pyarrow import fs

    from pipelines.common.storage import filesystem

    system, path = filesystem(uri)
    first = system.get_file_info(path)
    if first.type == fs.FileType.NotFound:
        return ABSENT
    found = [first] if first.type == fs.FileType.File else system.get_file_info(fs.FileSelector(path, recursive=True))
    return of_value(sorted([i.path, i.size, i.mtime_ns] for i in found if i.type == fs.FileType.File))
