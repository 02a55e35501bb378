"""Encoding of item texts, in this process or by a pool of Ray actors. Cached texts are not encoded again.

No process ever holds all texts or all vectors: texts are read by row groups, and rows of the table of vectors are
written as they are computed. Only the hash of each item's text stays in memory: about 150 bytes an item during sorting.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.common.cluster import free_threads, quiet_data, ray_session
from pipelines.common.failures import readable_error
from pipelines.common.progress import Bar, bar
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig
from pipelines.config.sections import ClusterSettings
from pipelines.features.item_features import text_encoder
from setrec.atomic import atomic_file
from setrec.text.encoder import TextEncoder
from setrec.text.vector_store import VectorCache, VectorTable

CACHE = ".text_cache"
"""Folder next to the runs, which share it; one sub-folder per encoder, weights and settings."""
_BATCHES = 8  # a block's texts are sorted by length, so that a batch pads little; more would sort no better
_SHARD = 4096  # texts per file of the cache: what a killed job loses at most

Blocks = Iterator[tuple[np.ndarray, np.ndarray]]
"""Rows int64 (b,) and their vectors float32 (b, width)."""


def encode_texts(run: Run, config: JobConfig) -> None:
    """Write ``features/text.safetensors``, a vector for each item, if the configuration names an encoder.

    A text is encoded once for all items and runs; the run's log contains the number of encoded texts.
    ``encoder.actors`` above one starts a pool of Ray actors; the vectors are the same, bit for bit if actors compute
    with as many threads as this process.

    Raises:
        ConfigError: the encoder cannot be loaded or returns numbers that are not finite.
        DataError: the data directory is damaged.
    """
    encoder = text_encoder(run, config)
    if encoder is None:
        return
    texts = Texts(run.data / "items.parquet")
    cache = VectorCache(run.root.parent / CACHE / encoder.identity)
    with bar("Encode item texts") as progress, atomic_file(run.features / "text.safetensors") as path:
        keys = texts.keys()
        distinct, first, number = np.unique(keys, return_index=True, return_inverse=True)
        with VectorTable(path, "text", len(keys), encoder.width) as table:
            missing = np.sort(first[~_fill(table, distinct, first, cache)])
            known = len(distinct) - len(missing)
            progress.update(known, len(distinct))
            size = _BATCHES * encoder.batch_size
            blocks = [missing[start : start + size] for start in range(0, len(missing), size)]
            route = _in_actors if config.encoder.actors > 1 and len(blocks) > 1 else _in_process
            found = _shown(route(encoder, texts, blocks, config), progress, known, len(distinct))
            _keep(found, table, keys, cache)
            _repeat(table, first[number])
        progress.update(1, 1, f"{len(missing)} new of {len(distinct)} texts, {encoder.width} numbers each")
    run.log("encoded", items=len(keys), texts=len(distinct), encoded=len(missing))


class Texts:
    """The texts of ``items.parquet``, read by row groups; the last group stays in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: pq.ParquetFile | None = None
        self._group, self._column = -1, pa.chunked_array([], pa.string())

    def __reduce__(self) -> tuple[type[Texts], tuple[Path]]:
        return Texts, (self.path,)  # a reader that is sent to another process opens the file there

    @property
    def file(self) -> pq.ParquetFile:
        """Return the open file."""
        if self._file is None:
            self._file = pq.ParquetFile(self.path)
        return self._file

    def keys(self) -> np.ndarray:
        """Return the hash of every text, 32 bytes each (I,)."""
        parts = []
        for group in range(self.file.num_row_groups):
            column = self.file.read_row_group(group, columns=["text"]).column(0)
            digests = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in column.to_pylist())
            parts.append(b"".join(digests))
        return np.frombuffer(b"".join(parts), dtype="S32")

    def read(self, rows: np.ndarray) -> list[str]:
        """Return the texts of rows in ascending order."""
        sizes = [self.file.metadata.row_group(g).num_rows for g in range(self.file.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        group_of = np.searchsorted(starts, rows, side="right") - 1
        found: list[str] = []
        for group in np.unique(group_of).tolist():
            if group != self._group:
                self._group, self._column = group, self.file.read_row_group(group, columns=["text"]).column(0)
            found += self._column.take(pa.array(rows[group_of == group] - starts[group])).to_pylist()
        return found


def _fill(table: VectorTable, distinct: np.ndarray, first: np.ndarray, cache: VectorCache) -> np.ndarray:
    """Write cached vectors to the first row of each text; return which texts were cached, bool."""
    known = np.zeros(len(distinct), dtype=bool)
    for keys, vectors in cache.shards():
        held = np.ascontiguousarray(keys).view("S32").ravel()
        place = np.searchsorted(distinct, held).clip(max=len(distinct) - 1)
        mine = distinct[place] == held
        table.write(first[place[mine]], vectors[mine])
        known[place[mine]] = True
    return known


def _in_process(encoder: TextEncoder, texts: Texts, blocks: list[np.ndarray], _: JobConfig) -> Blocks:
    for rows in blocks:
        yield rows, encoder.encode(texts.read(rows))


def _in_actors(encoder: TextEncoder, texts: Texts, blocks: list[np.ndarray], config: JobConfig) -> Blocks:
    """Yield blocks in the order in which actors finish them. An actor that dies is restarted and its block repeated."""
    actors = min(config.encoder.actors, len(blocks))
    with ray_session(config.cluster.address, max(os.cpu_count() or 1, actors)):
        import ray.data

        quiet_data()
        threads, gpus = _share(actors, config.cluster)
        # A hub id is unchanged; a path must have the same meaning for every actor.
        name = str(Path(encoder.name).absolute()) if Path(encoder.name).is_dir() else encoder.name
        spec = (name, encoder.batch_size, encoder.max_length, texts.path.absolute(), threads)
        found = ray.data.from_arrow([pa.table({"row": rows}) for rows in blocks]).map_batches(
            _Encoder,
            fn_constructor_args=spec,
            batch_size=None,  # whole blocks, so that batches, and so vectors, do not depend on the number of actors
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=threads,
            num_gpus=gpus,
        )
        try:
            for batch in found.iter_batches(batch_size=None, batch_format="numpy"):
                yield np.asarray(batch["row"]), np.asarray(batch["vector"])
        except Exception as error:
            raise readable_error(error, "encoding") from error


class _Encoder:
    """One actor of the pool, which encodes rows. It reads texts itself, so that they are not sent over the network."""

    def __init__(self, name: str, batch_size: int, max_length: int, path: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.encoder, self.texts = TextEncoder(name, batch_size, max_length), Texts(path)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"row": batch["row"], "vector": self.encoder.encode(self.texts.read(batch["row"]))}


def _share(actors: int, cluster: ClusterSettings) -> tuple[int, float]:
    """Return threads and GPUs per actor."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    return cluster.threads or free_threads(actors), 1 / math.ceil(actors / gpus) if gpus else 0


def _shown(found: Blocks, progress: Bar, done: int, total: int) -> Blocks:
    for rows, vectors in found:
        yield rows, vectors
        done += len(rows)
        progress.update(done, total)


def _keep(found: Blocks, table: VectorTable, keys: np.ndarray, cache: VectorCache) -> None:
    """Write vectors to the table and, some thousand at a time, to the cache."""
    fresh: dict[bytes, np.ndarray] = {}
    for rows, vectors in found:
        table.write(rows, vectors)
        # An S32 drops trailing zeros; a key has 32 bytes.
        fresh.update(zip((key.ljust(32, b"\0") for key in keys[rows].tolist()), vectors, strict=True))
        if len(fresh) >= _SHARD:
            cache.write(fresh)
            fresh = {}
    cache.write(fresh)


def _repeat(table: VectorTable, first: np.ndarray) -> None:
    """Copy vectors to the further rows of the same text; ``first`` (I,) is the first row that has each row's text."""
    again = np.flatnonzero(first != np.arange(len(first)))
    for start in range(0, len(again), _SHARD):
        rows = again[start : start + _SHARD]
        table.write(rows, table.read(first[rows]))
