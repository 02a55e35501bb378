"""Vectors on disk: a cache by key, safe under concurrent and interrupted writers, and tables that are written in
place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from setrec.atomic import atomic_file


class VectorCache:
    """A directory of shards, each named by the hash of its own content.

    A shard is never modified, so writers need no lock: at worst two of them write the same vectors. A shard whose
    content does not match its name is incomplete or damaged; its vectors are treated as missing and computed again.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def read(self, wanted: Container[bytes]) -> dict[bytes, np.ndarray]:
        """Return the cached vectors, float32 (width,), of the ``wanted`` keys. All shards are read."""
        known: dict[bytes, np.ndarray] = {}
        for keys, vectors in self.shards():
            for row, vector in zip(keys, vectors, strict=True):
                if (key := row.tobytes()) in wanted:
                    known.setdefault(key, vector)
        return known

    def shards(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield keys, uint8 (s, 32), and vectors, float32 (s, width), of every intact shard, one at a time."""
        for path in sorted(self.directory.glob("*.safetensors")):
            shard = _shard(path)
            if shard is not None:
                yield shard

    def write(self, vectors: dict[bytes, np.ndarray]) -> None:
        """Add vectors; all keys have 32 bytes, all vectors one width."""
        if not vectors:
            return
        keys = np.frombuffer(b"".join(vectors), dtype=np.uint8).reshape(len(vectors), 32)
        content = save({"keys": keys, "vectors": np.stack(list(vectors.values())).astype(np.float32)})
        path = self.directory / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)


class VectorTable:
    """A new safetensors file whose one tensor ``name`` is float32 (rows, width), zeros until rows are written.

    It may be filled in any order and be larger than memory, as no part of it stays there. Written to a path of
    :func:`setrec.atomic.atomic_file`, it is complete or absent.
    """

    def __init__(self, path: str | Path, name: str, rows: int, width: int) -> None:
        entry = {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, 4 * rows * width]}
        header = json.dumps({name: entry}).encode()
        header += b" " * (-len(header) % 8)  # the format requires alignment
        self._width, self._start = width, 8 + len(header)
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.truncate(self._start + 4 * rows * width)

    def __enter__(self) -> VectorTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Set ``rows`` int64 (r,) to ``vectors`` (r, width); adjacent rows are written together."""
        order = np.argsort(rows, kind="stable")
        rows, vectors = rows[order], np.ascontiguousarray(vectors[order], dtype=np.float32)
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, last in pairwise([0, *ends.tolist(), len(rows)] if len(rows) else []):
            os.pwrite(self._file.fileno(), vectors[first:last].tobytes(), self._place(int(rows[first])))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors (r, width) of ``rows``."""
        size = 4 * self._width
        rows_read = [os.pread(self._file.fileno(), size, self._place(row)) for row in rows.tolist()]
        return np.frombuffer(b"".join(rows_read), dtype=np.float32).reshape(len(rows), self._width)

    def _place(self, row: int) -> int:
        return self._start + 4 * self._width * row


def _shard(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return keys and vectors of a shard; ``None`` if it is damaged, missing or not a shard."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem:
            return None
        tensors = load(content)
        return tensors["keys"], tensors["vectors"]
    except (OSError, SafetensorError, KeyError):
        return None
