"""Checkpoints in any file system of pyarrow: complete or absent, with retries, and without loss of the last good one.

A checkpoint is a folder of files and, written last, a manifest with their sizes and SHA-256 sums; a folder without one
does not count. Every attempt has its own folder, so complete checkpoints are never overwritten. Checkpoints older than
the last ``keep`` are deleted once a new one is complete. Sums are checked when a checkpoint is read: the manifest of a
damaged one is removed, and the previous checkpoint is used.

Ray Train's own checkpoints are not used: they have no sums and no retries, and the controller, not only a worker, fails
when the store is unreachable for a moment.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from pipelines.common import storage
from setrec.errors import SetRecError

T = TypeVar("T")
MANIFEST, STORE = "manifest.json", "store.json"
PREFIX = "checkpoint-"
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
"""Errors of a local disk for which retries are useless."""
CHUNK = 8 << 20
log = logging.getLogger(__name__)


class CheckpointStoreError(SetRecError):
    """Raised when a store is unreachable for longer than allowed."""


class _DamageError(Exception):
    """Raised when files of a checkpoint do not match its manifest."""


class CheckpointStore:
    """The checkpoints of one run below ``where``, a local path or a URI.

    ``patience``: seconds for which an operation is retried before it raises :class:`CheckpointStoreError`. ``keep``:
    number of latest complete checkpoints that are kept; each costs its size in storage.
    """

    def __init__(self, where: str | Path, *, patience: float = 300.0, keep: int = 2) -> None:
        self.where, self.patience, self.keep = str(where), patience, max(1, keep)
        self.system, self.root = storage.filesystem(where)

    def create(self) -> None:
        """Make the store if it does not exist. A store without its marker counts as unreachable, not as empty."""
        self._retried(lambda: self._write(f"{self.root}/{STORE}", {"format": 1}), "make the checkpoint store")

    def clear(self) -> None:
        """Delete all checkpoints."""
        self._retried(self._clear, "clear checkpoints")

    def names(self) -> list[str]:
        """Return the names of complete checkpoints, oldest first; empty if there is no store."""
        return self._retried(self._complete, "list checkpoints")

    def put(self, folder: Path, name: str) -> None:
        """Store the files of ``folder`` as the newest checkpoint; ``name`` sorts after those of all earlier ones.

        Raises:
            CheckpointStoreError: the store could not be reached in time; its content is unchanged.
        """

        def attempt() -> str:
            own = f"{PREFIX}{name}-{uuid.uuid4().hex[:8]}"
            self._put(folder, own)
            return own

        newest = self._retried(attempt, "store a checkpoint")
        with suppress(OSError, pa.ArrowException):  # the next call deletes the rest
            self._prune(newest)

    def latest(self, into: Path) -> str | None:
        """Fetch the newest undamaged checkpoint; return its name, or ``None`` if there is none.

        Raises:
            CheckpointStoreError: the store could not be reached in time.
        """
        for name in reversed(self._retried(self._required, "list checkpoints")):
            try:
                self.fetch(name, into)
                return name
            except _DamageError as error:
                log.warning("%s/%s is damaged (%s) and skipped", storage.shown(self.where), name, error)
                self._retried(partial(self._remove, f"{self.root}/{name}/{MANIFEST}"), "mark a checkpoint")
        return None

    def fetch(self, name: str, into: Path) -> None:
        """Fetch one checkpoint by name and replace the content of ``into``."""
        self._retried(lambda: self._fetch(name, into), "fetch a checkpoint")

    def _clear(self) -> None:
        for name in self._folders():
            self._delete(name)

    def _complete(self) -> list[str]:
        return [name for name in self._folders() if self._there(f"{self.root}/{name}/{MANIFEST}")]

    def _required(self) -> list[str]:
        if not self._there(f"{self.root}/{STORE}"):
            raise OSError(f"no checkpoint store at {storage.shown(self.where)}")
        return self._complete()

    def _folders(self) -> list[str]:
        found = self.system.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        return sorted(i.base_name for i in found if i.base_name.startswith(PREFIX))

    def _put(self, folder: Path, name: str) -> None:
        target = f"{self.root}/{name}"
        self._required()
        files = {}
        try:
            self.system.create_dir(target, recursive=True)
            for path in sorted(folder.iterdir()):
                with path.open("rb") as source, self.system.open_output_stream(f"{target}/{path.name}") as sink:
                    files[path.name] = _copy(source, sink)
            self._write(f"{target}/{MANIFEST}", files)
        except BaseException:
            with suppress(OSError, pa.ArrowException):  # otherwise parts of many attempts fill the disk
                self.system.delete_dir(target)
            raise

    def _prune(self, newest: str) -> None:
        """Delete checkpoints older than the last ``keep``, and files of failed attempts."""
        others = [name for name in self._complete() if name != newest]
        for name in set(self._folders()) - {newest, *others[max(0, len(others) - self.keep + 1) :]}:
            self._delete(name)

    def _fetch(self, name: str, into: Path) -> None:
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        source = f"{self.root}/{name}"
        try:
            with self.system.open_input_stream(f"{source}/{MANIFEST}") as stream:
                files = json.loads(stream.read())
        except ValueError as error:
            raise _DamageError("its manifest cannot be read") from error
        sizes = {i.base_name: i.size for i in self.system.get_file_info(fs.FileSelector(source))}
        for file, expected in files.items():
            if sizes.get(file) != expected["size"]:
                raise _DamageError(f"{file} is missing or has another size")
            with self.system.open_input_stream(f"{source}/{file}") as stream, (into / file).open("wb") as sink:
                if _copy(stream, sink) != expected:
                    raise _DamageError(f"{file} has another sum")

    def _write(self, path: str, value: Any) -> None:
        """Write a small file atomically: object stores always do, elsewhere it is renamed into place."""
        parent, _, name = path.rpartition("/")
        self.system.create_dir(parent, recursive=True)
        temporary = f"{parent}/.{name}.{uuid.uuid4().hex[:8]}"
        with self.system.open_output_stream(temporary) as stream:
            stream.write(json.dumps(value).encode())
        self.system.move(temporary, path)

    def _there(self, path: str) -> bool:
        return bool(self.system.get_file_info(path).type == fs.FileType.File)

    def _remove(self, path: str) -> None:
        if self._there(path):
            self.system.delete_file(path)

    def _delete(self, name: str) -> None:
        """Delete a checkpoint, the manifest first, so that a partly deleted one does not count."""
        self._remove(f"{self.root}/{name}/{MANIFEST}")
        self.system.delete_dir(f"{self.root}/{name}")

    def _retried(self, action: Callable[[], T], purpose: str) -> T:
        until, pause = time.monotonic() + self.patience, 0.2
        while True:
            try:
                return action()
            except (OSError, pa.ArrowException) as error:
                lasting = getattr(error, "errno", None) in _LASTING and not storage.is_uri(self.where)
                if lasting or time.monotonic() + pause > until:
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    within = "" if lasting else f" within {self.patience:.0f} s"
                    raise CheckpointStoreError(
                        f"{storage.shown(self.where)}: could not {purpose}{within}: {reason}"
                    ) from error
                time.sleep(pause)
                pause = min(2 * pause, 15.0)


def _copy(source: IO[bytes], sink: IO[bytes]) -> dict[str, Any]:
    """Copy a stream; return its size and SHA-256 sum."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        sink.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}
