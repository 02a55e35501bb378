"""The later passes over streamed interactions, a bucket of whole users at a time: order, minimum counts, cuts, split.

Each pass reads a bucket's file and may leave another; none overwrites what it read, so that a task may run twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines import storage
from pipelines.blocks import load_arrays, part_of, save_arrays
from pipelines.data_directory import shard_name
from pipelines.data_settings import DataSettings
from pipelines.item_table import ItemTable
from pipelines.pieces import Source
from pipelines.rejects import Rejected
from setrec.catalog import Histories
from setrec.interactions import chronological, distinct, tied
from setrec.ragged import Ragged
from setrec.splits import TEST, TRAIN, VALID, ByColumn, LeaveOneOut, leave_one_out

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Buckets:
    """What every task needs. ``floats``: of each piece, which of its blocks have times that are fractions."""

    data: DataSettings
    source: Source
    scratch: str
    pieces: tuple[str, ...]
    floats: tuple[tuple[bool, ...], ...]
    count: int
    items: ItemTable

    def file(self, kind: str, bucket: int) -> str:
        """Where a bucket's file of a ``kind`` lies."""
        return storage.join(self.scratch, f"{kind}-{bucket:06d}")


def order(job: Buckets, bucket: int) -> dict[str, Any]:
    """Number users and items, sort each user's interactions by time, drop repeats; leaves files ``ordered``, ``users``.

    Returns ``counts`` int64 (I,) of each item's interactions, ``unknown``, ``repeated``, ``rejected``, ``first``.
    """
    table = _gathered(job, bucket)
    users, names = pd.factorize(table["user"])
    items = job.items.find(pd.Series(table["item"]))
    known, data, rejected = items >= 0, job.data, Rejected()
    if data.unknown_items == "refuse":
        _reject_unknown(job, table, np.flatnonzero(~known), rejected)
        rejected.save(job.file("unknown", bucket))
    users, items, times, rows, split = (a[known] for a in (users, items, table["time"], table["row"], table["split"]))
    place = chronological(users, times, data.ties, data.seed, rows + 1)
    users, items, times, split = users[place], items[place], times[place], split[place]
    keep = distinct(users, items, data.deduplicate)
    arrays = {"user": users.astype(np.int32), "item": items, "time": times, "split": split}
    save_arrays(job.file("ordered", bucket), {name: values[keep] for name, values in arrays.items()})
    save_arrays(job.file("users", bucket), {"user": pa.array(names, pa.large_string())})
    unknown = 0 if data.unknown_items == "refuse" else int((~known).sum())
    return {
        "bucket": bucket, "unknown": unknown, "repeated": int((~keep).sum()), "left": int(keep.sum()),
        "rejected": len(rejected), "first": rejected.first(), "counts": _counts(job, items[keep]),
    }  # fmt: skip


def core(job: Buckets, bucket: int, kind: str, turn: int, enough: np.ndarray) -> dict[str, Any]:
    """One round of minimum counts: drop items that are not ``enough``, bool (I,), then users with too few.

    Returns the ``kind`` of file that holds what is left, ``dropped``, and ``counts`` (I,).
    """
    arrays = load_arrays(job.file(kind, bucket))
    keep = enough[arrays["item"]]
    # An item's count is known for all buckets together only; a user's is settled here.
    counts = np.bincount(arrays["user"][keep])
    keep[keep] = counts[arrays["user"][keep]] >= job.data.user_min_count
    dropped = int((~keep).sum())
    if dropped:
        kind = f"core{turn}"
        save_arrays(job.file(kind, bucket), {name: values[keep] for name, values in arrays.items()})
    return {"bucket": bucket, "kind": kind, "dropped": dropped, "counts": _counts(job, arrays["item"][keep])}


def digits(job: Buckets, bucket: int, kind: str, shift: int, prefixes: tuple[int, ...]) -> list[np.ndarray]:
    """For each prefix, how many times begin with it and then have each value of the 16 bits at ``shift``, (65536,)."""
    keys = sortable(load_arrays(job.file(kind, bucket))["time"])
    found = []
    for prefix in prefixes:
        mine = keys if shift == 48 else keys[keys >> np.uint64(shift + 16) == np.uint64(prefix)]
        value = (mine >> np.uint64(shift)) & np.uint64(0xFFFF)
        found.append(np.bincount(value.astype(np.int64), minlength=1 << 16))
    return found


def sortable(times: np.ndarray) -> np.ndarray:
    """Numbers in the order of ``times`` (int64 or float64), uint64."""
    if times.dtype.kind != "f":
        return times.astype(np.int64).view(np.uint64) ^ np.uint64(1 << 63)
    bits = (times + 0.0).view(np.uint64)  # the sum makes minus zero equal to zero, as it compares
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def trained(job: Buckets, bucket: int, kind: str, cuts: tuple[int, ...]) -> np.ndarray:
    """Training interactions of each item, int64 (I,), before any item is held out."""
    arrays = load_arrays(job.file(kind, bucket))
    return _counts(job, arrays["item"][_labels(job, arrays, cuts) == TRAIN])


@dataclass(frozen=True)
class Rows:
    """``row`` int32 (I,): of each item code, its row in the catalogue; ``cold`` bool (I,): held out of training."""

    row: np.ndarray
    cold: np.ndarray


def write(job: Buckets, bucket: int, kind: str, cuts: tuple[int, ...], rows: Rows, folder: str) -> dict[str, Any]:
    """Label the interactions and write the bucket's shard, where anything is left of it.

    Returns counts: ``users``, ``splits`` (3,), ``held``, ``tied``, ``tied_last``, and ``trained`` (I,).
    """
    arrays = load_arrays(job.file(kind, bucket))
    labels = _labels(job, arrays, cuts)
    keep = ~((labels == TRAIN) & rows.cold[arrays["item"]])
    users, items, labels = arrays["user"][keep], arrays["item"][keep], labels[keep]
    ties = tied(users, arrays["time"][keep])
    present, lengths = np.unique(users, return_counts=True)
    ends = np.cumsum(lengths)
    if len(present):
        names = load_arrays(job.file("users", bucket))["user"][present].tolist()
        offsets = np.concatenate([[0], ends]).astype(np.int64)
        histories = Histories(names, Ragged(rows.row[items], offsets), labels)
        histories.save(Path(folder) / shard_name(bucket))
    return {
        "users": len(present), "splits": np.bincount(labels, minlength=3), "held": int((~keep).sum()),
        "tied": int(ties.sum()), "tied_last": int(ties[ends - 1].sum()),
        "trained": _counts(job, items[labels == TRAIN]),
    }  # fmt: skip


def _gathered(job: Buckets, bucket: int) -> dict[str, np.ndarray]:
    """A bucket's rows in the order of the input; times as the whole input has them."""
    fractions = any(any(flags) for flags in job.floats)
    batches, times = [], []
    for piece, block, batch in part_of(job.pieces, bucket, job.count):
        time = batch["time"].to_numpy()
        time = time.view(np.float64) if job.floats[piece][block] else time
        times.append(time.astype(np.float64) if fractions else time)
        batches.append(batch)
    table = pa.Table.from_batches(batches)
    arrays = {name: table[name].to_numpy() for name in ("user", "item", "split", "row")}
    return {**arrays, "time": np.concatenate(times)}


def _reject_unknown(job: Buckets, table: Arrays, unknown: np.ndarray, rejected: Rejected) -> None:
    for at in unknown.tolist():
        file, row = job.source.place(int(table["row"][at]))
        reason = f"unknown item {table['item'][at]!r}: {storage.shown(job.data.items or '')} does not hold it"
        rejected.add(file, row, job.data.columns.item, reason)


def _labels(job: Buckets, arrays: Arrays, cuts: tuple[int, ...]) -> np.ndarray:
    split = job.data.split
    if isinstance(split, LeaveOneOut):
        lengths = np.bincount(arrays["user"])
        return leave_one_out(np.concatenate([[0], np.cumsum(lengths)]), split.min_history)
    if isinstance(split, ByColumn):
        return arrays["split"]
    keys = sortable(arrays["time"])
    valid, test = cuts
    return np.where(keys >= test, TEST, np.where(keys >= valid, VALID, TRAIN)).astype(np.int8)


def _counts(job: Buckets, items: np.ndarray) -> np.ndarray:
    return np.bincount(items, minlength=len(job.items))
