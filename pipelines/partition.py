"""The first pass over streamed interactions: check the rows of a piece and part them by user into buckets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines import storage
from pipelines.blocks import parted, save_arrays
from pipelines.cluster import quiet_data
from pipelines.data_settings import DataSettings
from pipelines.failures import told
from pipelines.item_table import hashed
from pipelines.pieces import Piece, Source
from pipelines.rejects import Rejected
from setrec.errors import SetRecError
from setrec.tables import interactions_of, time_column


@dataclass(frozen=True)
class Partition:
    """What every task of the pass needs. ``iso``: whether times in text are dates; ``collect_items``: whether the
    items met are the catalogue, so that their ids are kept."""

    data: DataSettings
    source: Source
    scratch: str
    buckets: int
    iso: bool
    collect_items: bool

    def piece(self, kind: str, number: int) -> str:
        """Where a piece's file of a ``kind`` lies."""
        return storage.join(self.scratch, f"{kind}-{number:06d}")


def columns_needed(data: DataSettings, names: list[str]) -> tuple[list[str], str | None]:
    """Columns of interactions to read from a table with columns ``names``; and which of them holds times."""
    schema = data.schema_in_use
    time = time_column(schema, names)
    needed = [schema.user, schema.item, time, schema.rating, schema.split]
    return list(dict.fromkeys(name for name in needed if name is not None)), time


def over_pieces(job: Partition) -> Iterator[dict[str, Any]]:
    """The pass as a streaming Ray Data job: what :func:`partition` found, piece by piece as they finish.

    Raises:
        ConfigError: the cluster failed.
    """
    import ray

    quiet_data()
    pieces = [{"number": piece.number} for piece in job.source.pieces]
    each: Any = partial(_piece, job=job, task=partition)
    data = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map(each, num_cpus=1)
    try:
        for row in data.iter_rows():
            yield json.loads(row["found"])
    except ray.exceptions.RayError as error:
        raise told(error, "ingest") from error


def _piece(row: dict[str, Any], job: Partition, task: Any) -> dict[str, str]:
    return {"found": json.dumps(task(job, job.source.pieces[row["number"]]))}


def partition(job: Partition, piece: Piece) -> dict[str, Any]:
    """Write the piece's rows, a batch a bucket and block, and return what was met.

    Returns ``rows``, ``rejected`` with ``first`` of them, ``rating_below``, ``floats`` (a flag a block: times are
    fractions) and ``error``, a line where the table itself cannot be used: raised here it would come back wrapped.
    """
    found = {"number": piece.number, "rows": piece.rows, "rejected": 0, "first": "", "rating_below": 0, "error": ""}
    try:
        return {**found, **_partition(job, piece)}
    except SetRecError as error:
        return {**found, "floats": [], "error": str(error)}


def _partition(job: Partition, piece: Piece) -> dict[str, Any]:
    schema, rejected, met = job.data.schema_in_use, Rejected(), _Met()
    floats, below = [], 0
    names = columns_needed(job.data, job.source.schema.names)[0] if job.source.schema is not None else None
    with parted(job.piece("piece", piece.number), _ARROW, job.buckets) as append:
        for raw, before in job.source.blocks(piece, names, job.data.streaming.block_rows):
            faults: dict[int, tuple[str, str]] = {}
            frame = interactions_of(raw, schema, faults, job.iso)
            rejected.add_faults(faults, str(raw.file), before)
            rows = frame.index.to_numpy() + (piece.first_row + before - 1)
            if job.collect_items:
                met.add(frame["item"], rows)
            if job.data.min_rating is not None:
                enough = frame["rating"].to_numpy() >= job.data.min_rating
                below += int((~enough).sum())
                frame, rows = frame[enough], rows[enough]
            append(_table(frame, rows), (hashed(frame["user"]) % np.uint64(job.buckets)).astype(np.int64))
            floats.append(frame["time"].dtype.kind == "f")
    rejected.save(job.piece("rejected", piece.number))
    if job.collect_items:
        met.save(job.piece("items", piece.number))
    return {"rejected": len(rejected), "first": rejected.first(), "rating_below": below, "floats": floats}


_ARROW = pa.schema(
    [("user", pa.large_string()), ("item", pa.large_string()), ("time", pa.int64()), ("split", pa.int8()),
     ("row", pa.int64())]
)  # fmt: skip
"""``time``: whole numbers, or the bits of fractions; ``row``: of the whole table, from 0."""


def _table(frame: pd.DataFrame, rows: np.ndarray) -> pa.Table:
    split = frame["split"].to_numpy() if "split" in frame else np.zeros(len(frame), np.int8)
    times = frame["time"].to_numpy()
    times = times.astype(np.float64 if times.dtype.kind == "f" else np.int64).view(np.int64)
    arrays = [
        pa.array(frame["user"], pa.large_string()),
        pa.array(frame["item"], pa.large_string()),
        times,
        split.astype(np.int8),
        rows,
    ]
    return pa.table(dict(zip(_ARROW.names, arrays, strict=True)), schema=_ARROW)


class _Met:
    """The items of a piece and the row where each is met first."""

    def __init__(self) -> None:
        self._items: list[pd.Series] = []
        self._rows: list[np.ndarray] = []

    def add(self, items: pd.Series, rows: np.ndarray) -> None:
        new = ~items.duplicated().to_numpy()
        self._items.append(items[new])
        self._rows.append(rows[new])

    def save(self, where: str) -> None:
        items, rows = pd.concat(self._items, ignore_index=True), np.concatenate(self._rows)
        new = ~items.duplicated().to_numpy()
        save_arrays(where, {"item": pa.array(items[new], pa.large_string()), "row": rows[new]})
