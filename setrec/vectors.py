"""Vectors by key on disk, for many writers at once and for writers that die."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from setrec.atomic import atomic_file


class VectorCache:
    """A directory of shards, each named by the hash of its own content.

    A shard is never changed, so writers need no lock: two of them at worst write the same vectors twice. A shard
    whose content does not match its name is torn or damaged; its vectors count as unknown and are computed again.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def read(self, wanted: Container[bytes]) -> dict[bytes, np.ndarray]:
        """The vectors, float32 (width,), of those wanted keys that are known. Reads every shard."""
        known: dict[bytes, np.ndarray] = {}
        for path in sorted(self.directory.glob("*.safetensors")):
            keys, vectors = _shard(path)
            for key, vector in zip(keys, vectors, strict=True):
                if key in wanted:
                    known.setdefault(key, vector)
        return known

    def write(self, vectors: dict[bytes, np.ndarray]) -> None:
        """Add vectors; all keys have 32 bytes, all vectors one width."""
        if not vectors:
            return
        keys = np.frombuffer(b"".join(vectors), dtype=np.uint8).reshape(len(vectors), 32)
        content = save({"keys": keys, "vectors": np.stack(list(vectors.values())).astype(np.float32)})
        path = self.directory / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)


def _shard(path: Path) -> tuple[list[bytes], np.ndarray]:
    """Keys and vectors of a shard; nothing where it is damaged, was just removed or is no shard at all."""
    nothing: tuple[list[bytes], np.ndarray] = [], np.empty((0, 0), dtype=np.float32)
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem:
            return nothing
        tensors = load(content)
        return [row.tobytes() for row in tensors["keys"]], tensors["vectors"]
    except (OSError, SafetensorError, KeyError):
        return nothing
