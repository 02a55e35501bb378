"""Raw Arrow columns to checked values; a value that cannot be used is refused with its file, row and column."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from setrec.errors import DataError


@dataclass(frozen=True)
class Column:
    """A column and its place, for messages."""

    file: Path
    name: str
    values: pa.ChunkedArray

    def refuse(self, reason: str, row: int | None = None) -> DataError:
        """The error to raise; ``row`` counts from 0 and is shown counted from 1."""
        return DataError(reason, file=self.file, row=None if row is None else row + 1, column=self.name)

    def refuse_first(self, bad: np.ndarray, reason: str) -> None:
        """Raise for the first row where ``bad`` is true; ``{}`` in ``reason`` becomes the value found there."""
        if bad.any():
            row = int(bad.argmax())
            raise self.refuse(reason.format(repr(self.values[row].as_py())), row)

    @property
    def nulls(self) -> np.ndarray:
        """Which values are missing, bool."""
        return self.values.is_null().to_numpy()


def ids(column: Column, what: str = "id") -> pd.Series:
    """Ids as text; text and whole numbers are ids, fractions, dates and lists are not. ``what`` is for messages."""
    column = _decoded(column)
    kind = column.values.type
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise column.refuse(f"wrong type: {kind} where text or whole numbers are expected")
    column.refuse_first(column.nulls, f"the {what} is missing")
    text = column.values.cast(pa.large_string())
    column.refuse_first(pc.equal(pc.utf8_trim_whitespace(text), "").to_numpy(), f"the {what} is blank")
    return text.to_pandas()


def numbers(column: Column) -> np.ndarray:
    """Finite numbers: int64 where all are whole, else float64."""
    column = _decoded(column)
    kind = column.values.type
    column.refuse_first(column.nulls, "the number is missing")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = _numpy(column)
    elif _is_text(kind):
        parsed = pd.to_numeric(column.values.to_pandas(), errors="coerce")
        column.refuse_first(parsed.isna().to_numpy(), "{} is no number")
        values = parsed.to_numpy()
    else:
        raise column.refuse(f"wrong type: {kind} where numbers are expected")
    column.refuse_first(~np.isfinite(values), "{} is no finite number")
    return values


def times(column: Column) -> np.ndarray:
    """Numbers that order interactions: numbers as they are; dates and ISO 8601 text as whole microseconds (UTC)."""
    column = _decoded(column)
    kind = column.values.type
    column.refuse_first(column.nulls, "the timestamp is missing")
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        unit = kind.unit if pa.types.is_timestamp(kind) and kind.unit == "ns" else "us"
        return column.values.cast(pa.timestamp(unit)).cast(pa.int64()).to_numpy()
    if not _is_text(kind):
        return numbers(column)
    if pd.isna(pd.to_numeric(column.values[0].as_py(), errors="coerce")):
        return _iso(column)
    parsed = pd.to_numeric(column.values.to_pandas(), errors="coerce")
    column.refuse_first(~np.isfinite(parsed.to_numpy(dtype=float, na_value=np.nan)), "{} is no timestamp")
    return parsed.to_numpy()


def _iso(column: Column) -> np.ndarray:
    parsed = pd.to_datetime(column.values.to_pandas(), errors="coerce", utc=True, format="ISO8601")
    column.refuse_first(parsed.isna().to_numpy(), "{} is no timestamp (a number or ISO 8601)")
    return parsed.dt.as_unit("us").astype("int64").to_numpy()


def words(column: Column) -> list[str]:
    """One line of text per row, blanks collapsed; nothing where a value is missing; lists joined by commas."""
    column = _decoded(column)
    if _is_list(column.values.type):
        return [", ".join(values) for values in tags(column)]
    return [" ".join((value or "").split()) for value in _as_text(column)]


def tags(column: Column, separator: str | None = None) -> list[list[str]]:
    """The distinct non-blank values of each row: of a list, of one string split at ``separator``, or one value."""
    column = _decoded(column)
    if _is_list(column.values.type):
        rows = _as_text(Column(column.file, column.name, pc.list_flatten(column.values)))
        lengths = pc.fill_null(pc.list_value_length(column.values), 0).to_numpy()
        ends = np.cumsum(lengths)
        parts = [rows[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    else:
        single = [value or "" for value in _as_text(column)]
        parts = [value.split(separator) if separator else [value] for value in single]  # type: ignore[misc]
    tidy = ([" ".join((value or "").split()) for value in values] for values in parts)
    return [list(dict.fromkeys(value for value in values if value)) for values in tidy]


def _as_text(column: Column) -> list[str | None]:
    kind = _decoded(column).values.type
    simple = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not (_is_text(kind) or simple or pa.types.is_null(kind)):
        raise column.refuse(f"wrong type: {kind} where text is expected")
    return _decoded(column).values.cast(pa.large_string()).to_pylist()


def _numpy(column: Column) -> np.ndarray:
    whole = pa.types.is_integer(column.values.type)
    try:
        return column.values.cast(pa.int64() if whole else pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise column.refuse(f"a number is out of range ({str(error).splitlines()[0]})") from error


def _decoded(column: Column) -> Column:
    if pa.types.is_dictionary(column.values.type):
        return Column(column.file, column.name, column.values.cast(column.values.type.value_type))
    return column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
