"""Atomic writes of files and directories, and working folders that are removed after their process ends."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from setrec.errors import ConfigError

_HELD = ".held"
"""The lock file in a working folder. The operating system holds the lock for the process, so a folder whose lock is
free was left by a killed process."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write to; it takes the name ``path`` when the block ends without an error.

    Readers see the old file or the new one, never a part. The parent directory is created if it is missing. Errors of
    the file system name ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path):
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

    After an error, or a kill at any moment, the old directory or the new one is at ``path``: the two are exchanged in
    one system call. On file systems without that call, the old one is moved aside briefly, and :func:`recover` moves it
    back after a kill in that moment. Folders left by killed processes are removed first.

    Raises:
        NotADirectoryError: a file is at ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    with _naming(path), held_folder(path.parent, f".{path.name}.", ".tmp") as work:
        new = work / "new"
        new.mkdir()
        yield new
        _put_in_place(new, path, work / "old")


def refuse_foreign(path: str | Path, own: str) -> None:
    """Raise an error if something is at ``path`` that :func:`atomic_directory` would remove and that is not an earlier
    folder of ours: a file, or a folder with content but without the file ``own``.

    Raises:
        ConfigError: there is.
    """
    path = Path(path)
    if path.exists() and not (path / own).is_file() and not (path.is_dir() and next(path.iterdir(), None) is None):
        raise ConfigError(f"{path}: exists and holds no {own}; not replaced")


def recover(path: str | Path) -> None:
    """Clean up after a killed :func:`atomic_directory` at ``path``: restore the old directory if none is there, and
    remove working folders."""
    path = Path(path)
    for work in abandoned(path.parent, f".{path.name}.", ".tmp"):
        if not path.exists() and (work / "old").exists():
            (work / "old").rename(path)
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def held_folder(parent: Path, prefix: str, suffix: str = "") -> Iterator[Path]:
    """Create a folder in ``parent`` that is locked for this process, and removed when the block ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=parent))
        lock = FileLock(folder / _HELD)
        with suppress(Timeout, FileNotFoundError):  # another process cleaned it up before it was locked
            lock.acquire(timeout=0)
            break
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def abandoned(parent: Path, prefix: str, suffix: str = "") -> Iterator[Path]:
    """Yield the folders that :func:`held_folder` created in ``parent`` for processes that were killed; each is locked
    while the caller uses it. Other folders have no lock file and are ignored."""
    for folder in map(Path, glob.glob(f"{glob.escape(str(parent / prefix))}*{suffix}")):
        if folder.is_symlink() or not (folder / _HELD).is_file():
            continue
        lock = FileLock(folder / _HELD)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # in use by a live process, or owned by another user
            continue
        try:
            yield folder
        finally:
            lock.release()


def _put_in_place(new: Path, path: Path, aside: Path) -> None:
    if not path.exists():
        new.rename(path)
    elif not _exchange(new, path):
        path.rename(aside)
        try:
            new.rename(path)
        except OSError:
            aside.rename(path)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths atomically; return false if the system does not support it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return call is not None and call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add ``path`` to errors of the file system, including those that a library wraps in its own."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    except Exception as error:
        if found := _OS_ERROR.search(str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
