"""The two input tables, read and checked: interactions and items, from any format of ``setrec.formats``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from setrec import columns
from setrec.catalog import Catalog
from setrec.columns import Column
from setrec.errors import DataError
from setrec.formats import RawTable, read_raw
from setrec.schema import Schema
from setrec.splits import by_column


def read_interactions(path: str | Path, schema: Schema) -> pd.DataFrame:
    """Interactions in the order of the file.

    Returns a frame whose index is the data row of the file, from 1 (so a later error can still name it), with the
    columns ``user`` and ``item`` (text), ``time`` (int64 or float64), and where the schema names them ``rating``
    (numbers) and ``split`` (int8 labels).

    Raises:
        DataError: the file or a value in it cannot be used; one line naming file, row and column.
    """
    raw = read_raw(path)
    frame = {"user": columns.ids(_column(raw, schema.user)), "item": columns.ids(_column(raw, schema.item))}
    frame["time"] = pd.Series(_times(raw, schema))
    if schema.rating is not None:
        frame["rating"] = pd.Series(columns.numbers(_column(raw, schema.rating)))
    if schema.split is not None:
        labels = columns.ids(_column(raw, schema.split), what="split")
        frame["split"] = pd.Series(by_column(labels, file=raw.file, column=schema.split))
    return pd.DataFrame(frame).set_axis(pd.RangeIndex(1, len(frame["user"]) + 1))


def read_items(path: str | Path, schema: Schema) -> Catalog:
    """Items in the order of the file.

    A blank title is shown as the item's id. The text for an encoder is made of the text columns and the attributes,
    ``Toy Story. Release year: 1995. Class: Animation, Comedy``, and never of the id.

    Raises:
        DataError: the file or a value in it cannot be used, or an item id repeats; one line naming the place.
    """
    raw = read_raw(path)
    column = _column(raw, schema.item_id)
    ids = columns.ids(column)
    _refuse_duplicates(column, ids)
    text, attributes = text_columns(raw, schema), attribute_columns(raw, schema)
    lines = [columns.words(_column(raw, name)) for name in text]
    tags = {name: columns.tags(_column(raw, name), separator(raw, schema, name)) for name in attributes}
    names = ids.tolist()
    titles = [title or item for title, item in zip(lines[0], names, strict=True)] if lines else names
    texts = [compose([line[row] for line in lines], {k: v[row] for k, v in tags.items()}) for row in range(len(names))]
    return Catalog(names, titles, texts, tags)


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


def _times(raw: RawTable, schema: Schema) -> np.ndarray:
    names = raw.table.column_names
    if schema.position is not None or (schema.timestamp is None and "timestamp" not in names and "position" in names):
        return columns.numbers(_column(raw, schema.position or "position"))
    return columns.times(_column(raw, schema.timestamp or "timestamp"))


def _column(raw: RawTable, name: str) -> Column:
    return Column(raw.file, name, raw.column(name))


def _refuse_duplicates(column: Column, ids: pd.Series) -> None:
    repeated = ids.duplicated().to_numpy()
    if repeated.any():
        row = int(repeated.argmax())
        first = int((ids == ids.iloc[row]).to_numpy().argmax())
        raise DataError(
            f"duplicate item id {ids.iloc[row]!r} (first in row {first + 1})",
            file=column.file, row=row + 1, column=column.name,
        )  # fmt: skip
