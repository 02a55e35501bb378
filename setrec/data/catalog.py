"""Items and users: ids and row numbers, descriptions of items, and histories of users.

Item row numbers are assigned in a seeded random order (``pipelines.ingest.ingest``), because ids and their sort order
may leak the signal to be predicted; no model may see them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from setrec.atomic import atomic_file
from setrec.data.events import read
from setrec.data.splits import TEST, TRAIN, VALID
from setrec.data.user_ids import UserIds
from setrec.errors import DataError, UnknownItemError, UnknownUserError
from setrec.mapped import on_disk
from setrec.ragged import Ragged, offsets_of, row_blocks

__all__ = ["TEST", "TRAIN", "VALID", "Catalog", "Histories"]

_ATTRIBUTE, _WEIGHTS = "attribute:", "weights"
BLOCK = 1 << 20
"""Interactions in memory at a time where all are read."""


@dataclass(frozen=True)
class Catalog:
    """A catalogue of I items. ``titles`` are for people, ``texts`` for a text encoder (never the id), each aligned with
    ``item_ids``.

    ``attributes`` maps a column's name to the list of values of every item.
    """

    item_ids: list[str]
    titles: list[str]
    texts: list[str]
    attributes: dict[str, list[list[str]]]

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.item_ids)}

    def find(self, item_id: str) -> int | None:
        """Return the row number of an item, ``None`` if it is not in the catalogue."""
        return self._row_of.get(item_id)

    def rows(self, ids: Iterable[str]) -> np.ndarray:
        """Return the row numbers, int64, of item ids.

        Raises:
            UnknownItemError: an id is not in the catalogue; the message names the first one.
        """
        known = self._row_of
        try:
            return np.fromiter((known[item] for item in ids), dtype=np.int64)
        except KeyError as missing:
            raise UnknownItemError(f"unknown item {missing.args[0]!r}") from None

    def take(self, rows: Sequence[int] | np.ndarray) -> Catalog:
        """Return a catalogue of the given rows, in the given order."""
        order = [int(row) for row in rows]
        return Catalog(
            [self.item_ids[row] for row in order],
            [self.titles[row] for row in order],
            [self.texts[row] for row in order],
            {name: [values[row] for row in order] for name, values in self.attributes.items()},
        )

    def table(self) -> pa.Table:
        """Return the table that ``save`` writes: ``item_id``, ``title``, ``text`` and one list column
        ``attribute:<name>`` each."""
        strings = {"item_id": self.item_ids, "title": self.titles, "text": self.texts}
        columns = {name: pa.array(values, pa.string()) for name, values in strings.items()}
        for name, values in self.attributes.items():
            columns[_ATTRIBUTE + name] = pa.array(values, pa.list_(pa.string()))
        return pa.table(columns)

    def save(self, path: str | Path) -> None:
        """Write a Parquet file."""
        with atomic_file(path) as temporary:
            pq.write_table(self.table(), temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> Catalog:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing, damaged or not a catalogue.
        """
        with _reading(path), pq.ParquetFile(path) as file:  # read_table imports pandas
            table = _checked(file.read(), path, dict.fromkeys(("item_id", "title", "text"), pa.string()))
        attributes = {name: table[name] for name in table.column_names if name.startswith(_ATTRIBUTE)}
        return cls(
            table["item_id"].to_pylist(),
            table["title"].to_pylist(),
            table["text"].to_pylist(),
            {name.removeprefix(_ATTRIBUTE): values.to_pylist() for name, values in attributes.items()},
        )


@dataclass(frozen=True, eq=False)
class Histories:
    """Histories of B users: ``items`` contains item rows (int32), oldest first, with weights if events weigh
    differently (see :mod:`setrec.data.events`); ``splits`` (int8) labels each value."""

    user_ids: Sequence[str]
    items: Ragged
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.user_ids)

    @cached_property
    def _ids(self) -> UserIds:
        return UserIds.of(self.user_ids)

    def row(self, user_id: str) -> int:
        """Return the row of a user.

        Raises:
            UnknownUserError: the user is not in the histories.
        """
        row = self._ids.find(user_id)
        if row is None:
            raise UnknownUserError(f"unknown user {user_id!r}")
        return row

    def part(self, start: int, end: int) -> Histories:
        """Return users ``start`` to ``end``, the latter excluded; arrays are not copied."""
        offsets = self.items.offsets[start : end + 1]
        values, weights = slice(int(offsets[0]), int(offsets[-1])), self.items.weights
        items = Ragged(self.items.values[values], offsets - offsets[0], None if weights is None else weights[values])
        return Histories(self.user_ids[start:end], items, self.splits[values])

    def blocks(self) -> Iterator[Histories]:
        """Yield all users in order, some at a time, with about :data:`BLOCK` interactions; there is at least one
        block."""
        return (self.part(start, end) for start, end in row_blocks(self.items.offsets, BLOCK))

    def take(self, users: np.ndarray) -> Histories:
        """Return the given users, in the given order."""
        splits = Ragged(self.splits, self.items.offsets).take(users).values
        return Histories(UserIds(self._ids.column.take(pa.array(users))), self.items.take(users), splits)

    def events(self, split: int | np.ndarray) -> Ragged:
        """Return all events up to and including ``split``, one for all users or one per user (B,), also those with
        negative weights; as :meth:`Ragged.stored` returns them, a block of users at a time."""
        last = np.broadcast_to(split, len(self))

        def known(users: tuple[int, int]) -> Ragged:
            block = self.part(*users)
            return block.items.where(block.splits <= np.repeat(last[slice(*users)], block.items.lengths))

        return Ragged.stored(map(known, row_blocks(self.items.offsets, BLOCK)))

    def upto(self, split: int) -> Ragged:
        """Return each user's items up to and including ``split``: TRAIN for training, VALID for the histories at
        test."""
        return Ragged.stored(read(block.items.where(block.splits <= split)) for block in self.blocks())

    def of(self, split: int) -> Ragged:
        """Return each user's items of ``split`` only."""
        return Ragged.stored(read(block.items.where(block.splits == split)) for block in self.blocks())

    def train_counts(self, n_items: int) -> np.ndarray:
        """Return the number of training interactions of each item, int64 (I,)."""
        counts = np.zeros(n_items, dtype=np.int64)
        for block in self.blocks():
            counts += np.bincount(block.upto(TRAIN).values, minlength=n_items)
        return counts

    def trained(self, n_items: int) -> np.ndarray:
        """Return the mask of warm items, bool (I,), which occur in training. All others are cold."""
        return self.train_counts(n_items) > 0

    def save(self, path: str | Path) -> None:
        """Write a Parquet file with ``user_id`` and the list columns ``items``, ``splits`` and, if there are any,
        ``weights``, one row per user; row groups have about :data:`BLOCK` interactions."""
        group = max(1, BLOCK * len(self) // max(1, len(self.items.values)))
        offsets = pa.array(self.items.offsets, pa.int64())
        columns = {
            "user_id": self._ids.column,
            "items": pa.LargeListArray.from_arrays(offsets, pa.array(self.items.values, pa.int32())),
            "splits": pa.LargeListArray.from_arrays(offsets, pa.array(self.splits, pa.int8())),
        }
        if self.items.weights is not None:
            columns[_WEIGHTS] = pa.LargeListArray.from_arrays(offsets, pa.array(self.items.weights, pa.float32()))
        with atomic_file(path) as temporary:
            pq.write_table(pa.table(columns), temporary, row_group_size=group, compression="zstd")

    @classmethod
    def load(cls, *paths: str | Path, items: int | None = None) -> Histories:
        """Read what ``save`` wrote, the users of all files in order, a row group at a time.

        Of several row groups items, labels and weights are on disk (:func:`setrec.mapped.on_disk`).

        Args:
            paths: the files.
            items: size of the catalogue; with ``None`` rows of items are not compared with it.

        Raises:
            DataError: a file is missing, damaged or does not contain histories, or has other items.
        """
        ids = list[pa.Array]()

        def parts() -> Iterator[tuple[np.ndarray, ...]]:
            for path in paths:
                for table in _row_groups(path):
                    part = _histories(table, path, items)
                    ids.extend(table["user_id"].chunks)
                    weights = () if part.items.weights is None else (part.items.weights,)
                    yield part.items.lengths, part.items.values, part.splits, *weights

        lengths, values, splits, *weights = on_disk(parts())
        rows = Ragged(values, offsets_of(lengths), weights[0] if weights else None)
        return cls(UserIds(pa.chunked_array(ids, pa.string())), rows, splits)


def _histories(table: pa.Table, path: str | Path, catalogue: int | None) -> Histories:
    items, splits = _ragged(table["items"]), _ragged(table["splits"])
    if not np.array_equal(items.offsets, splits.offsets):
        raise DataError("items and splits differ in length", file=path)
    if not np.isin(splits.values, (TRAIN, VALID, TEST)).all() or (items.values < 0).any():
        raise DataError("holds labels or item rows outside their range", file=path)
    if catalogue is not None and items.values.max(initial=-1) >= catalogue:
        raise DataError("holds item rows that the catalogue does not have", file=path)
    if _WEIGHTS in table.column_names:
        items = _weighted(items, table, path)
    return Histories(UserIds(table["user_id"]), items, splits.values)


def _weighted(items: Ragged, table: pa.Table, path: str | Path) -> Ragged:
    if table.schema.field(_WEIGHTS).type != pa.large_list(pa.float32()) or table[_WEIGHTS].null_count:
        raise DataError("expected lists of float without nulls", file=path, column=_WEIGHTS)
    weights = _ragged(table[_WEIGHTS])
    if not np.array_equal(items.offsets, weights.offsets):
        raise DataError("items and weights differ in length", file=path)
    if not (np.isfinite(weights.values) & (weights.values != 0)).all():
        raise DataError("holds weights that are 0 or no numbers", file=path)
    return replace(items, weights=weights.values)


def _row_groups(path: str | Path) -> Iterator[pa.Table]:
    """Yield the row groups of a file of histories, at least an empty one."""
    lists = {"items": pa.large_list(pa.int32()), "splits": pa.large_list(pa.int8())}
    with _reading(path), pq.ParquetFile(path) as file:
        groups = map(file.read_row_group, range(file.num_row_groups))
        for table in groups if file.num_row_groups else [file.schema_arrow.empty_table()]:
            yield _checked(table, path, {"user_id": pa.string(), **lists})


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    if not Path(path).is_file():
        raise DataError("no such file", file=path)
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError("not a readable Parquet file (truncated or damaged)", file=path) from error


def _checked(table: pa.Table, path: str | Path, expected: dict[str, pa.DataType]) -> pa.Table:
    table.validate(full=True)
    for name, kind in expected.items():
        if name not in table.column_names:
            raise DataError("missing column", file=path, column=name)
        if table.schema.field(name).type != kind or table[name].null_count:
            raise DataError(f"expected {kind} without nulls", file=path, column=name)
    return table


def _ragged(column: pa.ChunkedArray) -> Ragged:
    lengths = np.concatenate([_numbers(chunk.value_lengths()) for chunk in column.chunks] or [np.empty(0, int)])
    values = [_numbers(chunk.flatten()) for chunk in column.chunks]
    kind = column.type.value_type.to_pandas_dtype()
    flat = np.concatenate([*values, np.empty(0, kind)]).astype(kind, copy=False)
    return Ragged(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _numbers(array: pa.Array) -> np.ndarray:
    # to_numpy imports pandas, which takes longer than reading a small file.
    found: np.ndarray = array.to_numpy(zero_copy_only=False) if array.null_count else np.from_dlpack(array)
    return found
