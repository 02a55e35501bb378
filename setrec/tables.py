"""The two input tables, read and checked: interactions and items, from any format of ``setrec.formats``."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from setrec import columns
from setrec.catalog import Catalog
from setrec.columns import Column, Faults
from setrec.formats import RawTable, read_raw
from setrec.schema import Schema
from setrec.splits import NAMES, by_column


def read_interactions(path: str | Path, schema: Schema) -> pd.DataFrame:
    """Interactions in the order of the file; see :func:`interactions_of`.

    Raises:
        DataError: the file or a value in it cannot be used; one line naming file, row and column.
    """
    return interactions_of(read_raw(path), schema)


def interactions_of(
    raw: RawTable, schema: Schema, faults: Faults | None = None, iso: bool | None = None
) -> pd.DataFrame:
    """Interactions of a table in its order.

    Returns a frame whose index is the data row of the table, from 1 (so a later error can still name it), with the
    columns ``user`` and ``item`` (text), ``time`` (int64 or float64), and where the schema names them ``rating``
    (numbers) and ``split`` (int8 labels). With ``faults`` rows that cannot be used are noted there and left out.
    ``iso``: see :func:`setrec.columns.times`.

    Raises:
        DataError: a column is missing or of a wrong type, or (without ``faults``) a value cannot be used.
    """
    column = partial(_column, raw, faults=faults)
    frame = {"user": columns.ids(column(schema.user)), "item": columns.ids(column(schema.item))}
    frame["time"] = pd.Series(_times(raw, schema, faults, iso))
    if schema.rating is not None:
        frame["rating"] = pd.Series(columns.numbers(column(schema.rating)))
    if schema.split is not None:
        frame["split"] = pd.Series(_labels(column(schema.split)))
    numbered = pd.DataFrame(frame).set_axis(pd.RangeIndex(1, raw.table.num_rows + 1))
    return numbered.drop(index=[row + 1 for row in faults]) if faults else numbered


def read_items(path: str | Path, schema: Schema) -> Catalog:
    """Items in the order of the file; see :func:`items_of`.

    Raises:
        DataError: the file or a value in it cannot be used, or an item id repeats; one line naming the place.
    """
    return items_of(read_raw(path), schema)


def items_of(raw: RawTable, schema: Schema, faults: Faults | None = None) -> Catalog:
    """Items of a table in its order.

    A blank title is shown as the item's id. The text for an encoder is made of the text columns and the attributes,
    ``Toy Story. Release year: 1995. Class: Animation, Comedy``, and never of the id. With ``faults`` rows that cannot
    be used are noted there and left out.

    Raises:
        DataError: a column is missing or of a wrong type, or (without ``faults``) an id cannot be used or repeats.
    """
    ids = item_ids(raw, schema, faults)
    text, attributes = text_columns(raw, schema), attribute_columns(raw, schema)
    lines = [columns.words(_column(raw, name)) for name in text]
    tags = {name: columns.tags(_column(raw, name), separator(raw, schema, name)) for name in attributes}
    names = ids.tolist()
    titles = [title or item for title, item in zip(lines[0], names, strict=True)] if lines else names
    texts = [compose([line[row] for line in lines], {k: v[row] for k, v in tags.items()}) for row in range(len(names))]
    catalog = Catalog(names, titles, texts, tags)
    return catalog.take(np.delete(np.arange(len(names)), list(faults))) if faults else catalog


def item_ids(raw: RawTable, schema: Schema, faults: Faults | None = None) -> pd.Series:
    """The ids of a table of items, of faulty rows too; ``faults`` as for :func:`items_of`."""
    column = _column(raw, schema.item_id, faults)
    ids = columns.ids(column)
    _refuse_duplicates(column, ids)
    return ids


def compose(text: list[str], attributes: dict[str, list[str]]) -> str:
    """The encoder's text of one item; columns without a value leave no trace."""
    parts = [line.rstrip(".") for line in text if line]
    parts += [f"{name.replace('_', ' ').capitalize()}: {', '.join(v)}" for name, v in attributes.items() if v]
    return ". ".join(parts)


def text_columns(raw: RawTable, schema: Schema) -> tuple[str, ...]:
    """The columns of words, stated or told by the file's types."""
    if schema.text is not None:
        return schema.text
    if raw.types:
        taken = {schema.item_id, *(schema.attributes or ())}
        return tuple(name for name, kind in raw.types.items() if kind == "token_seq" and name not in taken)[:1]
    return ("title",)


def attribute_columns(raw: RawTable, schema: Schema) -> tuple[str, ...]:
    """The categorical columns, stated or told by the file's types."""
    if schema.attributes is not None:
        return schema.attributes
    taken = {schema.item_id, *text_columns(raw, schema)}
    return tuple(name for name, kind in raw.types.items() if kind.startswith("token") and name not in taken)


def separator(raw: RawTable, schema: Schema, name: str) -> str | None:
    """What parts the values of an attribute held in one string: as stated; a blank for an atomic ``token_seq``."""
    return schema.separators.get(name, " " if raw.types.get(name) == "token_seq" else None)


def time_column(schema: Schema, names: Collection[str]) -> str:
    """The column of times or positions, stated or told by the ``names`` of a table's columns."""
    if schema.position is not None or (schema.timestamp is None and "timestamp" not in names and "position" in names):
        return schema.position or "position"
    return schema.timestamp or "timestamp"


def _times(raw: RawTable, schema: Schema, faults: Faults | None, iso: bool | None) -> np.ndarray:
    name = time_column(schema, raw.table.column_names)
    column = _column(raw, name, faults)
    positions = schema.position is not None or (schema.timestamp is None and name == "position")
    return columns.numbers(column) if positions else columns.times(column, iso)


def _labels(column: Column) -> np.ndarray:
    words = columns.ids(column, what="split")
    if column.faults is None:
        return by_column(words, file=column.file, column=column.name)
    bad = ~words.str.strip().str.lower().isin(NAMES).to_numpy(dtype=bool)
    column.refuse_first(bad, "{} is no split (train, valid, test)")
    return by_column(words.where(~bad, "train"))


def _column(raw: RawTable, name: str, faults: Faults | None = None) -> Column:
    return Column(raw.file, name, raw.column(name), faults)


def _refuse_duplicates(column: Column, ids: pd.Series) -> None:
    repeated = (ids.duplicated() & ids.notna()).to_numpy(dtype=bool)
    if repeated.any() and column.faults is None:
        row = int(repeated.argmax())
        first = int((ids == ids.iloc[row]).to_numpy().argmax())
        raise column.refuse(f"duplicate item id {ids.iloc[row]!r} (first in row {first + 1})", row)
    column.refuse_first(repeated, "duplicate item id {}")
