"""Interactions of any size to a data directory, as tasks on a Ray cluster; the result is that of ``pipelines.ingest``.

1. A Ray Data job over pieces of the input checks rows and parts them by user into buckets on disk.
2. Tasks over buckets, of whole users each, sort and de-duplicate; rounds of item and user counts apply the minima; a
   split by global time finds its instants exactly, 16 bits of the times a pass.
3. Tasks write a shard of histories a bucket, and the items in the order of their rows.

No process holds more than a block of the input or a bucket, and the ids of all items. Users stand in a shard in the
order in which they are first met, but shards hold users by a hash of their ids, so their order over all is another
than that of one process; each user's history and label is the same, and so are the items. Results do not depend on
the number of machines or cores, nor on which tasks had to run twice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import buckets, item_stream, partition, storage
from pipelines.buckets import Buckets, Rows
from pipelines.cluster import ray_session
from pipelines.data_directory import FORMAT, shard_name, write_summary
from pipelines.data_settings import DataSettings, Location
from pipelines.fan_out import Steps, fan_out
from pipelines.item_stream import Items
from pipelines.item_table import ItemTable
from pipelines.partition import Partition
from pipelines.pieces import Source, source
from pipelines.progress import Bar
from pipelines.rejects import DEFAULT_SHARE, Rejected, Tally, gather
from setrec.atomic import atomic_directory
from setrec.columns import is_iso
from setrec.errors import DataError
from setrec.splits import GlobalTime, held_out_items

WHAT = "ingest"


def ingest_stream(config: DataSettings, out: Path, shown: Bar, address: str | None = None) -> dict[str, Any]:
    """Write the data directory ``out``, which workers must reach under the same path; returns the summary.

    Raises:
        DataError: input that cannot be used, too many rows rejected, or nothing left to train on.
        ConfigError: the cluster failed.
    """
    interactions = source(config.interactions, config.streaming.block_rows, partial(partition.columns_needed, config))
    if not interactions.is_parquet:
        raise DataError("only Parquet can be streamed", file=config.interactions)
    items = None if config.items is None else source(config.items, config.streaming.block_rows)
    with ray_session(address), _scratch(config, out) as scratch, atomic_directory(out) as new:
        return _Ingest(config, interactions, items, scratch, new, shown).run()


@contextmanager
def _scratch(config: DataSettings, out: Path) -> Iterator[str]:
    """A folder for the buckets that goes when the block ends."""
    wanted = config.streaming.scratch
    if wanted is not None and storage.is_uri(wanted):
        where = storage.join(wanted, f"ingest-{uuid.uuid4().hex}")
        system, path = storage.filesystem(where)
        try:
            yield where
        finally:
            if storage.exists(where):
                system.delete_dir(path)
        return
    parent = out.parent if wanted is None else Path(wanted)
    parent.mkdir(parents=True, exist_ok=True)
    where = tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".buckets", dir=parent.resolve())
    try:
        yield where
    finally:
        shutil.rmtree(where, ignore_errors=True)


class _Ingest:
    """One ingest on its way through the passes."""

    def __init__(
        self, config: DataSettings, interactions: Source, items: Source | None, scratch: str, new: Path, shown: Bar
    ) -> None:
        self.config, self.source, self.scratch, self.new = config, interactions, scratch, new
        self.items = None if items is None else Items(config, items, scratch)
        self.count = max(1, -(-interactions.rows // config.streaming.bucket_rows))
        share = DEFAULT_SHARE if config.rejected_share is None else config.rejected_share
        self.tally = Tally(storage.shown(config.interactions), share, interactions.rows)
        self.item_tally = Tally(storage.shown(config.items or ""), share, items.rows if items else 0)
        self.dropped: dict[str, int] = {}
        pieces = len(interactions.pieces) + (2 * len(items.pieces) if items else 0)
        self.steps = Steps(shown, pieces + 3 * self.count + 2)
        new.joinpath("histories").mkdir()

    def run(self) -> dict[str, Any]:
        import ray

        table, table_ref = self._items_first() if self.items else (None, None)
        floats = self._partition()
        if table is None or table_ref is None:
            table, table_ref = self._table("items", len(self.source.pieces), "skip")
        names = tuple(storage.join(self.scratch, f"piece-{i:06d}") for i in range(len(self.source.pieces)))
        job = Buckets(self.config, self.source, self.scratch, names, floats, self.count, table)
        self.job, self.kinds = ray.put(job), ["ordered"] * self.count
        counts = self._core(self._order())
        cuts = self._cuts(int(counts.sum()))
        kept = np.flatnonzero(counts >= self.config.item_min_count)
        kept = np.random.default_rng(self.config.seed).permutation(kept)
        row_of = np.full(len(table), -1, dtype=np.int32)
        row_of[kept] = np.arange(len(kept), dtype=np.int32)
        cold = self._cold(len(table), cuts)
        written = self._write(cuts, Rows(row_of, cold))
        without_text = self._write_items(table_ref, kept, row_of)
        summary = self._summary(written, kept, without_text)
        gather(self._parts_of_rejected(), self.new / "rejected")
        write_summary(self.new, summary)
        return summary

    def _items_first(self) -> tuple[ItemTable, Any]:
        """Ids of the items' own table, checked."""
        assert self.items is not None
        calls = [(self.items, piece) for piece in self.items.source.pieces]
        for found in self.steps.follow(fan_out(item_stream.read_ids, calls, WHAT), "reading item ids"):
            self.item_tally.add(found["rejected"], found["first"])
        self.item_tally.check()
        return self._table("ids", len(calls), "report")

    def _table(self, kind: str, pieces: int, repeats: str) -> tuple[ItemTable, Any]:
        import ray

        files = [storage.join(self.scratch, f"{kind}-{i:06d}") for i in range(pieces)]
        results = fan_out(item_stream.table_of_ids, [(files, repeats)], WHAT)
        table, again = next(iter(self.steps.follow(results, "numbering items")))
        self._reject_repeats(again)
        return table, ray.put(table)

    def _reject_repeats(self, rows: dict[int, str]) -> None:
        if not rows:
            return
        assert self.items is not None
        rejected = Rejected()
        for row, item in rows.items():
            file, at = self.items.source.place(row)
            rejected.add(file, at, self.config.columns.item_id, f"duplicate item id {item!r}")
        rejected.save(storage.join(self.scratch, "repeats-000000"))
        self.item_tally.add(len(rejected), rejected.first())
        self.item_tally.check()

    def _partition(self) -> tuple[tuple[bool, ...], ...]:
        """The Ray Data job of the first pass; returns the flags of :func:`pipelines.partition.partition`."""
        iso = _times_are_dates(self.config, self.source)
        job = Partition(self.config, self.source, self.scratch, self.count, iso, self.items is None)
        floats: dict[int, tuple[bool, ...]] = {}
        below = 0
        for found in self.steps.follow(partition.over_pieces(job), "checking rows and parting them by user"):
            if found["error"]:
                raise DataError(found["error"])
            self.tally.add(found["rejected"], found["first"])
            below += found["rating_below"]
            floats[found["number"]] = tuple(found["floats"])
        self.tally.check()
        if self.config.min_rating is not None:
            self.dropped["rating_below_minimum"] = below
        return tuple(floats[number] for number in sorted(floats))

    def _over_buckets(self, task: Any, note: str, *rest: Any, extra: bool = False) -> Iterator[Any]:
        """``task(job, bucket, kind of file, *rest)`` for every bucket."""
        if extra:
            self.steps.expect(self.count)
        calls = ((self.job, bucket, self.kinds[bucket], *rest) for bucket in range(self.count))
        return self.steps.follow(fan_out(task, calls, WHAT), note)

    def _order(self) -> np.ndarray:
        """Returns each item's interactions, int64 (I,)."""
        totals = {"unknown": 0, "repeated": 0}
        counts: Any = 0
        calls = ((self.job, bucket) for bucket in range(self.count))
        for found in self.steps.follow(fan_out(buckets.order, calls, WHAT), "ordering histories"):
            self.tally.add(found["rejected"], found["first"])
            counts = counts + found["counts"]
            for name in totals:
                totals[name] += found[name]
        self.tally.check()
        for info in storage.files(self.scratch):
            if info.base_name.startswith("piece-"):
                storage.filesystem(self.scratch)[0].delete_file(info.path)
        self.dropped |= {"unknown_item": totals["unknown"], "repeated": totals["repeated"]}
        return counts

    def _core(self, counts: np.ndarray) -> np.ndarray:
        """Rounds of minimum counts until none drops anything; returns each item's interactions."""
        import ray

        self.dropped["below_minimum_count"] = 0
        # Whoever occurs at all occurs once.
        turn, dropped = 0, int(max(self.config.user_min_count, self.config.item_min_count) > 1)
        while dropped:
            turn, dropped = turn + 1, 0
            enough = ray.put(counts >= self.config.item_min_count)
            counts = np.zeros_like(counts)
            earlier = list(self.kinds)
            for found in self._over_buckets(buckets.core, f"minimum counts, round {turn}", turn, enough, extra=True):
                self.kinds[found["bucket"]] = found["kind"]
                dropped += found["dropped"]
                counts += found["counts"]
            self.dropped["below_minimum_count"] += dropped
            self._forget(earlier)
        if not counts.sum():
            reason = f"no interactions are left after filtering ({self.dropped})"
            raise DataError(reason, file=storage.shown(self.config.interactions))
        return counts

    def _forget(self, earlier: Sequence[str]) -> None:
        """Delete bucket files that a later pass has replaced."""
        for bucket, kind in enumerate(earlier):
            if kind != self.kinds[bucket]:
                system, path = storage.filesystem(storage.join(self.scratch, f"{kind}-{bucket:06d}"))
                system.delete_file(path)

    def _cuts(self, total: int) -> tuple[int, ...]:
        """The instants of a split by global time, as sortable keys: validation from the first, test from the second.

        Exactly the elements of the sorted times: each pass settles 16 bits of both.
        """
        split = self.config.split
        if not isinstance(split, GlobalTime):
            return ()
        # The element that setrec.splits.global_time takes.
        ranks = [total - int(np.ceil(total * share - 1e-9)) for share in (split.valid + split.test, split.test)]
        prefixes = [0, 0]
        for shift in (48, 32, 16, 0):
            histograms = [np.zeros(1 << 16, np.int64) for _ in prefixes]
            found = self._over_buckets(
                buckets.digits, "finding the split's instants", shift, tuple(prefixes), extra=True
            )
            for parts in found:
                for histogram, part in zip(histograms, parts, strict=True):
                    histogram += part
            for at, histogram in enumerate(histograms):
                below = np.cumsum(histogram)
                digit = int(np.searchsorted(below, ranks[at], side="right"))
                ranks[at] -= int(below[digit - 1]) if digit else 0
                prefixes[at] = (prefixes[at] << 16) | digit
        return tuple(prefixes)

    def _cold(self, items: int, cuts: tuple[int, ...]) -> np.ndarray:
        """Items to hold out of training, bool (I,)."""
        if not self.config.cold_share:
            return np.zeros(items, dtype=bool)
        counts = sum(self._over_buckets(buckets.trained, "choosing cold items", cuts, extra=True), np.zeros(items, int))
        return held_out_items(counts > 0, self.config.cold_share, self.config.seed)

    def _write(self, cuts: tuple[int, ...], rows: Rows) -> dict[str, Any]:
        """Write the shards, number them without gaps; returns the sums of what the tasks found."""
        import ray

        folder = str((self.new / "histories").resolve())
        totals: dict[str, Any] = {}
        for found in self._over_buckets(buckets.write, "writing histories", cuts, ray.put(rows), folder):
            totals = {name: totals.get(name, 0) + value for name, value in found.items()}
        for number, path in enumerate(sorted((self.new / "histories").iterdir())):
            path.rename(path.with_name(shard_name(number)))
        if not totals["splits"][0]:
            reason = "the split leaves no interaction to train on"
            raise DataError(reason, file=storage.shown(self.config.interactions))
        return totals

    def _write_items(self, table: Any, kept: np.ndarray, row_of: np.ndarray) -> int:
        import ray

        out = str((self.new / "items.parquet").resolve())
        if self.items is None:
            results = fan_out(item_stream.write_bare_catalog, [(table, kept, out)], WHAT)
            return next(iter(self.steps.follow(results, "writing items")))
        rows = ray.put(row_of)
        calls = [(self.items, piece, table, rows) for piece in self.items.source.pieces]
        for _ in self.steps.follow(fan_out(item_stream.place, calls, WHAT), "putting items in order"):
            pass
        files = [self.items.file("placed", piece.number) for piece in self.items.source.pieces]
        results = fan_out(item_stream.write_catalog, [(files, len(kept), out)], WHAT)
        return next(iter(self.steps.follow(results, "writing items")))

    def _parts_of_rejected(self) -> list[str]:
        kinds = ("rejected", "unknown", "badids", "repeats")
        found = {name: info.path for info in storage.files(self.scratch) if (name := info.base_name)}
        named = sorted(name for name in found if name.rpartition("-")[0] in kinds)
        return [storage.join(self.scratch, name) for name in named]

    def _summary(self, written: dict[str, Any], kept: np.ndarray, without_text: int) -> dict[str, Any]:
        warm, splits = int((written["trained"] > 0).sum()), written["splits"]
        held = {"held_out_item": written["held"]} if self.config.cold_share else {}
        total = int(splits.sum())
        return {
            "format": FORMAT,
            "users": written["users"],
            "items": len(kept),
            "interactions": total,
            "splits": {name: int(count) for name, count in zip(("train", "valid", "test"), splits, strict=True)},
            "warm_items": warm,
            "cold_items": len(kept) - warm,
            "items_without_text": without_text,
            "dropped": {**self.dropped, **held},
            "rejected": {"interactions": self.tally.rejected, "items": self.item_tally.rejected},
            "tied_share": round(written["tied"] / total, 4),
            "tied_last_share": round(written["tied_last"] / written["users"], 4),
            "settings": self.config.model_dump(mode="json"),
            "inputs": {
                storage.shown(where): fingerprint(where)
                for where in (self.config.interactions, self.config.items)
                if where is not None
            },
        }


def fingerprint(where: Location) -> str:
    """SHA-256 of names, sizes and times of change of the files: contents are not read once more for it."""
    facts = [(info.path, info.size, info.mtime_ns) for info in storage.files(where)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _times_are_dates(config: DataSettings, table: Source) -> bool:
    """Whether times in text are dates, told by the first value of the input as ``pipelines.ingest`` does."""
    assert table.schema is not None
    _, name = partition.columns_needed(config, table.schema.names)
    system, _ = storage.filesystem(table.where)
    for piece in table.pieces:
        file = pq.ParquetFile(system.open_input_file(piece.path), pre_buffer=False)
        for batch in file.iter_batches(batch_size=1000, columns=[name]):
            column = pa.chunked_array([batch.column(0)])
            if column.null_count < len(column):
                return is_iso(column)
    return False
