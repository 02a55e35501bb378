"""Interactions on a Ray cluster, with Ray Data's own operators and the same result as ``pipelines.ingest.on_duckdb``,
on any number of machines.

A task reads a file; the next steps run part by part in the same SQL, and user by user after a shuffle by the hash of
the user. From then on a row is a user with lists, so a user's interactions are never split. Sums over parts are reduced
in this process, which holds arrays of the length of the catalogue anyway.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.data.directory import SHARD_ROWS
from pipelines.data.engine import DuckDbEngine, engine
from pipelines.data.files import File
from pipelines.data.settings import DataSettings
from pipelines.ingest import interactions
from pipelines.ingest.histories import HistoryBlock
from pipelines.ingest.interactions import Loaded
from pipelines.ingest.rejects import Rejects
from setrec.data.interactions import chronological, distinct
from setrec.ragged import Ragged

_LISTS = ("item", "time", "split", "weight")
"""The list columns of a user, one value per interaction; the last two are optional."""


class OnRay:
    """The steps of an ingest as in :class:`pipelines.ingest.on_duckdb.OnDuckDB`; ``engine``: of this process, for items
    and rejected rows."""

    def __init__(self, config: DataSettings, engine: DuckDbEngine) -> None:
        self.config, self.engine = config, engine
        self.raw: Any = None
        self.users: Any = None
        self.sorted = False
        self.found = Loaded(np.zeros(0, dtype=np.int64))

    def load(self, files: list[File], rejects: Rejects) -> Loaded:
        """Read all files, each by one task.

        Raises:
            DataError: a file cannot be read, or a column is missing or of a wrong type.
        """
        import ray.data

        numbers: Any = ray.data.from_arrow([pa.table({"file": [file.number]}) for file in files])
        # Workers may have another working directory.
        found = [replace(file, path=file.path and file.path.absolute()) for file in files]
        given = {"config": self.config, "files": found}
        self.raw = numbers.map_batches(_read, batch_size=1, batch_format="pyarrow", fn_kwargs=given).materialize()
        counts = [part.to_pandas() for part in self._query(interactions.COUNTS)]
        if not counts:
            return Loaded(np.zeros(len(files), dtype=np.int64))
        self.found = interactions.time_facts(self.config, pd.concat(counts, ignore_index=True), len(files))
        self.engine.run(
            "CREATE TABLE faulty (file INTEGER, place BIGINT, number BIGINT, fault STRUCT(c VARCHAR, r VARCHAR))"
        )
        if self.found.rejected:
            self._reject("SELECT file, row AS place, fault FROM raw WHERE fault IS NOT NULL", rejects)
        return self.found

    def items(self) -> None:
        """Make the table ``items`` of the items in interactions, in the order of their first occurrence."""
        parts = self._mapped("SELECT item, min(row) AS row FROM raw WHERE fault IS NULL GROUP BY item")
        self.engine.run("CREATE TABLE met (item VARCHAR, row BIGINT)")
        first = _parts(parts.groupby("item", num_partitions=self._partitions).min("row"))
        self._insert("met", first, {"item": pa.string(), "min(row)": pa.int64()})
        self.engine.run("CREATE TABLE items AS SELECT item AS id, row FROM met ORDER BY row")

    def order(self, found: Loaded, rejects: Rejects) -> dict[str, int]:
        """Group interactions by user, in order and without repeats. Return how many interactions were dropped by
        reason; those of unknown items go to ``rejects`` if they are refused."""
        import ray

        config = self.config
        dropped: dict[str, int] = {}
        if interactions.filters(config, found):
            parts = [part.to_pandas() for part in self._query(interactions.cuts(config, found))]
            dropped = pd.concat(parts).sum().astype(int).to_dict()
            if not dropped.pop("kept"):
                return {**dropped, "unknown_item": 0, "repeated": 0}
        items = ray.put(self.engine.table("SELECT id, rowid::INTEGER AS code FROM items"))
        passed = interactions.row_condition(config, found)
        query = (
            f"SELECT raw.user, items.code AS item, {interactions.facts(config, found)}, row FROM raw "
            f"LEFT JOIN items ON raw.item = items.id WHERE {passed}"
        )
        self.users = (
            self._mapped(query, items)
            .repartition(self._partitions, keys=["user"])
            .map_batches(_histories, batch_size=None, batch_format="pyarrow", fn_kwargs={"config": config})
            .materialize()
        )
        sums = pd.concat([part.to_pandas() for part in self._folded(_dropped)]).sum().astype(int)
        dropped["unknown_item"], repeated = int(sums["unknown"]), int(sums["repeated"])
        if dropped["unknown_item"] and config.unknown_items == "refuse":
            dropped["unknown_item"] = 0
            fault = interactions.unknown_item(config, rejects.items)
            unheld = f"raw ANTI JOIN items ON raw.item = items.id WHERE {passed}"
            query = f"SELECT file, row AS place, {fault} AS fault FROM {unheld}"
            self._reject(query, rejects, items)
        self.raw = None
        return {**dropped, "repeated": repeated}

    def drop_rare(self) -> int:
        """Keep the largest part in which users and items have their minimum counts; return how many were removed.

        Removing one may bring another below its minimum, so the rule is applied until nothing changes.
        """
        config, dropped = self.config, 0
        if max(config.user_min_count, config.item_min_count) > 1:  # every user and item occurs at least once
            items = self.engine.one("SELECT count(*) FROM items")[0]
            counts = self.counts(items)
            round_ = int(counts.sum())
            while round_:
                given = {"keep": _put(counts >= config.item_min_count), "least": config.user_min_count}
                kept = self.users.map_batches(_drop_rare, batch_size=None, batch_format="pyarrow", fn_kwargs=given)
                self.users, before = kept.materialize(), int(counts.sum())
                counts = self.counts(items)
                round_ = before - int(counts.sum())
                dropped += round_
        return dropped

    def counts(self, items: int) -> np.ndarray:
        """Return the number of interactions of each item code, int64 (I,)."""
        counts = np.zeros(items, dtype=np.int64)
        for part in self._folded(_item_counts):
            counts[part["item"].to_numpy()] += part["count"].to_numpy()
        return counts

    def times_at(self, ranks: list[int]) -> list[float]:
        """Return the times at the given ranks of all sorted times."""
        times: Any = self.users.map_batches(_times, batch_size=None, batch_format="pyarrow").sort("time").materialize()
        return [times.split_at_indices([rank])[1].take(1)[0]["time"] for rank in ranks]

    def blocks(self) -> Iterator[HistoryBlock]:
        """Yield the remaining interactions in the blocks of Ray Data."""
        if not self.sorted:
            self.users, self.sorted = self.users.sort("met").materialize(), True
        for part in _parts(self.users):
            item, *_ = lists = [_ragged(part, name) for name in _lists(part)]
            if len(item.values):
                met = part["met"].to_numpy()
                values = {name: of.values for name, of in zip(_lists(part), lists, strict=True)}
                yield HistoryBlock(user=met[item.row_of_value], names=partial(_names, met, part["user"]), **values)

    @property
    def _partitions(self) -> int:
        return int(self.found.rows.sum()) // SHARD_ROWS + 1

    def _mapped(self, query: str, items: Any = None) -> Any:
        """Return the rows of a query over each part of ``raw``, with times settled once all files are known."""
        given = {"config": self.config, "found": self.found, "query": query, "items": items}
        return self.raw.map_batches(_queried, batch_size=None, batch_format="pyarrow", fn_kwargs=given)

    def _query(self, query: str) -> Iterator[pa.Table]:
        return _parts(self._mapped(query))

    def _folded(self, function: Callable[[pa.Table], pa.Table]) -> Iterator[pa.Table]:
        if self.users is not None:
            yield from _parts(self.users.map_batches(function, batch_size=None, batch_format="pyarrow"))

    def _reject(self, query: str, rejects: Rejects, items: Any = None) -> None:
        """Store the rejected rows of a query: ``file``, ``place`` among all rows and ``fault``."""
        bases = self.found.bases

        def numbered() -> Iterator[pa.Table]:
            for part in _parts(self._mapped(query, items)):
                number = part["place"].to_numpy() - bases[part["file"].to_numpy()] + 1
                yield part.add_column(2, "number", pa.array(number, pa.int64()))

        fault = pa.struct([("c", pa.string()), ("r", pa.string())])
        self.engine.run("TRUNCATE faulty")
        types = {"file": pa.int32(), "place": pa.int64(), "number": pa.int64(), "fault": fault}
        self._insert("faulty", numbered(), types)
        rejects.collect("SELECT file, place, number, fault FROM faulty", int(self.found.rows.sum()))

    def _insert(self, table: str, parts: Iterator[pa.Table], types: dict[str, pa.DataType]) -> None:
        schema = pa.schema(list(types.items()))
        batches = (batch for part in parts for batch in part.select(list(types)).cast(schema).to_batches())
        self.engine.insert(table, batches, schema)


def _parts(dataset: Any) -> Iterator[pa.Table]:
    """Yield the non-empty blocks of a dataset, in order."""
    yield from (part for part in dataset.iter_batches(batch_size=None, batch_format="pyarrow") if part.num_rows)


def _put(value: Any) -> Any:
    import ray

    return ray.put(value)


def _got(reference: Any) -> Any:
    import ray

    return ray.get(reference)


@contextmanager
def _small_engine(config: DataSettings) -> Iterator[DuckDbEngine]:
    """Open the engine of one task."""
    with engine(config, Path(tempfile.gettempdir()) / "setrec-ingest", threads=1) as running:
        interactions.create(running, config)
        yield running


def _read(batch: pa.Table, config: DataSettings, files: list[File]) -> Iterator[pa.Table]:
    for number in batch["file"].to_pylist():
        with _small_engine(config) as running:
            interactions.read(running, config, [files[number]], alone=len(files) == 1)
            # Blocks are concatenated, which dictionaries of units would make harder.
            query = "SELECT * REPLACE (unit::VARCHAR AS unit), rowid AS row FROM raw"
            for rows in running.batches(query, SHARD_ROWS // 2):
                yield pa.Table.from_batches([rows])


def _queried(part: pa.Table, config: DataSettings, found: Loaded, query: str, items: Any) -> pa.Table:
    with _small_engine(config) as running:
        if len(found.rows):
            row = pa.array(part["row"].to_numpy() + found.bases[part["file"].to_numpy()])
            part = part.set_column(part.column_names.index("row"), "row", row)
        if items is not None:
            running.connection.register("items", _got(items))
        running.run("ALTER TABLE raw ADD COLUMN row BIGINT")
        running.connection.register("part", part)
        running.run("INSERT INTO raw BY NAME SELECT * FROM part")
        interactions.settle(running, found)
        return running.table(query)


def _histories(part: pa.Table, config: DataSettings) -> pa.Table:
    """Return a row for each user of a part with whole users: ``user``, ``met`` (the first row of the user), ``unknown``
    and ``repeated`` (interactions dropped by reason), and the lists."""
    part = part.sort_by("row")
    names = part["user"].combine_chunks().dictionary_encode()
    user, row = names.indices.to_numpy(), part["row"].to_numpy()
    unknown = part["item"].is_null().to_numpy(zero_copy_only=False)
    _, met = np.unique(user, return_index=True)  # dictionaries number values in order of occurrence
    count = len(met)
    known = np.flatnonzero(~unknown)
    known = known[chronological(user[known], part["time"].to_numpy()[known], config.ties, config.seed, row[known] + 1)]
    item = part["item"].fill_null(0).to_numpy()[known]
    strength, weights = (
        part[name].to_numpy()[known] if name in part.column_names else None for name in ("strength", "weight")
    )
    kept = distinct(user[known], item, config.deduplicate, strength, weights)
    repeated = np.bincount(user[known[~kept]], minlength=count)
    known = known[kept]
    offsets = np.r_[0, np.cumsum(np.bincount(user[known], minlength=count))]
    return pa.table(
        {
            "user": names.dictionary.take(pa.array(user[met])),
            "met": pa.array(row[met], pa.int64()),
            "unknown": pa.array(np.bincount(user[unknown], minlength=count), pa.int32()),
            "repeated": pa.array(repeated, pa.int32()),
            **{name: _list_of(part[name].take(pa.array(known)), offsets) for name in _lists(part)},
        }
    )


def _lists(part: pa.Table) -> list[str]:
    return [name for name in _LISTS if name in part.column_names]


def _list_of(values: pa.ChunkedArray | pa.Array, offsets: np.ndarray) -> pa.Array:
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)


def _ragged(part: pa.Table, name: str) -> Ragged:
    column = part[name].combine_chunks()
    lengths = column.value_lengths().to_numpy()
    return Ragged(column.flatten().to_numpy(zero_copy_only=False), np.r_[0, np.cumsum(lengths)].astype(np.int64))


def _drop_rare(part: pa.Table, keep: Any, least: int) -> pa.Table:
    """Remove items that are not in ``keep``, and then users with fewer than ``least`` interactions."""
    item = _ragged(part, "item")
    kept = _got(keep)[item.values]
    counts = np.bincount(item.row_of_value[kept], minlength=len(item))
    stays = counts >= max(least, 1)
    kept &= stays[item.row_of_value]
    offsets = np.r_[0, np.cumsum(counts[stays])]
    lists = {name: part[name].combine_chunks().flatten().filter(pa.array(kept)) for name in _lists(part)}
    rest = part.drop_columns(list(lists)).filter(pa.array(stays))
    for name, values in lists.items():
        rest = rest.append_column(name, _list_of(values, offsets))
    return rest


def _item_counts(part: pa.Table) -> pa.Table:
    item, count = np.unique(_ragged(part, "item").values, return_counts=True)
    return pa.table({"item": item, "count": count})


def _times(part: pa.Table) -> pa.Table:
    return pa.table({"time": _ragged(part, "time").values})


def _dropped(part: pa.Table) -> pa.Table:
    return pa.table({name: [part[name].to_numpy().sum()] for name in ("unknown", "repeated")})


def _names(met: np.ndarray, ids: pa.ChunkedArray, users: np.ndarray) -> list[str]:
    """Return the ids of users by the ascending numbers of their first rows."""
    names: list[str] = ids.take(pa.array(np.searchsorted(met, users))).to_pylist()
    return names
