"""Items and users: ids and row numbers, descriptions of items, and histories of users.

Item row numbers are assigned in a seeded random order (``pipelines.ingest.ingest``), because ids and their sort order
may leak the signal to be predicted; no model may see them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from setrec.atomic import atomic_file
from setrec.data.events import read
from setrec.data.splits import TEST, TRAIN, VALID
from setrec.errors import DataError, UnknownItemError, UnknownUserError
from setrec.ragged import Ragged

__all__ = ["TEST", "TRAIN", "VALID", "Catalog", "Histories"]

_ATTRIBUTE, _WEIGHTS = "attribute:", "weights"


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
        table = _read(path, {"item_id": pa.string(), "title": pa.string(), "text": pa.string()})
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

    user_ids: list[str]
    items: Ragged
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.user_ids)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.user_ids)}

    def row(self, user_id: str) -> int:
        """Return the row of a user.

        Raises:
            UnknownUserError: the user is not in the histories.
        """
        try:
            return self._row_of[user_id]
        except KeyError:
            raise UnknownUserError(f"unknown user {user_id!r}") from None

    def events(self, split: int) -> Ragged:
        """Return all events up to and including ``split``, also those with negative weights."""
        return self.items.where(self.splits <= split)

    def upto(self, split: int) -> Ragged:
        """Return each user's items up to and including ``split``: TRAIN for training, VALID for the histories at
        test."""
        return read(self.events(split))

    def of(self, split: int) -> Ragged:
        """Return each user's items of ``split`` only."""
        return read(self.items.where(self.splits == split))

    def train_counts(self, n_items: int) -> np.ndarray:
        """Return the number of training interactions of each item, int64 (I,)."""
        return np.bincount(self.upto(TRAIN).values, minlength=n_items).astype(np.int64)

    def trained(self, n_items: int) -> np.ndarray:
        """Return the mask of warm items, bool (I,), which occur in training. All others are cold."""
        return self.train_counts(n_items) > 0

    def save(self, path: str | Path) -> None:
        """Write a Parquet file with ``user_id`` and the list columns ``items``, ``splits`` and, if there are any,
        ``weights``, one row per user."""
        offsets = pa.array(self.items.offsets, pa.int64())
        columns = {
            "user_id": pa.array(self.user_ids, pa.string()),
            "items": pa.LargeListArray.from_arrays(offsets, pa.array(self.items.values, pa.int32())),
            "splits": pa.LargeListArray.from_arrays(offsets, pa.array(self.splits, pa.int8())),
        }
        if self.items.weights is not None:
            columns[_WEIGHTS] = pa.LargeListArray.from_arrays(offsets, pa.array(self.items.weights, pa.float32()))
        with atomic_file(path) as temporary:
            pq.write_table(pa.table(columns), temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> Histories:
        """Read what ``save`` wrote.

        Raises:
            DataError: the file is missing, damaged or does not contain histories.
        """
        lists = {"items": pa.large_list(pa.int32()), "splits": pa.large_list(pa.int8())}
        table = _read(path, {"user_id": pa.string(), **lists})
        items, splits = _ragged(table["items"]), _ragged(table["splits"])
        if not np.array_equal(items.offsets, splits.offsets):
            raise DataError("items and splits differ in length", file=path)
        if not np.isin(splits.values, (TRAIN, VALID, TEST)).all() or (items.values < 0).any():
            raise DataError("holds labels or item rows outside their range", file=path)
        if _WEIGHTS in table.column_names:
            items = _weighted(items, table, path)
        return cls(table["user_id"].to_pylist(), items, splits.values)


def _weighted(items: Ragged, table: pa.Table, path: str | Path) -> Ragged:
    if table.schema.field(_WEIGHTS).type != pa.large_list(pa.float32()) or table[_WEIGHTS].null_count:
        raise DataError("expected lists of float without nulls", file=path, column=_WEIGHTS)
    weights = _ragged(table[_WEIGHTS])
    if not np.array_equal(items.offsets, weights.offsets):
        raise DataError("items and weights differ in length", file=path)
    if not (np.isfinite(weights.values) & (weights.values != 0)).all():
        raise DataError("holds weights that are 0 or no numbers", file=path)
    return replace(items, weights=weights.values)


def _read(path: str | Path, expected: dict[str, pa.DataType]) -> pa.Table:
    if not Path(path).is_file():
        raise DataError("no such file", file=path)
    try:
        table = pq.read_table(path)
        table.validate(full=True)
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError("not a readable Parquet file (truncated or damaged)", file=path) from error
    for name, kind in expected.items():
        if name not in names:
            raise DataError("missing column", file=path, column=name)
        if table.schema.field(name).type != kind or table[name].null_count:
            raise DataError(f"expected {kind} without nulls", file=path, column=name)
    return table


def _ragged(column: pa.ChunkedArray) -> Ragged:
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in column.chunks] or [np.empty(0, int)])
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    kind = column.type.value_type.to_pandas_dtype()
    flat = np.concatenate([*values, np.empty(0, kind)]).astype(kind, copy=False)
    return Ragged(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
