"""Conversion of raw Arrow columns to validated values; errors name the file, row and column."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from setrec.errors import DataError


@dataclass(frozen=True)
class Column:
    """A column and its location, for messages."""

    file: Path | str
    name: str
    values: pa.ChunkedArray

    def refuse(self, reason: str, row: int | None = None) -> DataError:
        """Return the error to raise; ``row`` counts from 0 and is shown counted from 1."""
        return DataError(reason, file=self.file, row=None if row is None else row + 1, column=self.name)

    def refuse_first(self, bad: np.ndarray, reason: str) -> None:
        """Raise for the first row where ``bad`` is true; ``{}`` in ``reason`` is replaced by the row's value."""
        for row in np.flatnonzero(bad)[:1].tolist():
            raise self.refuse(reason.format(repr(self.values[row].as_py())), row)

    @property
    def nulls(self) -> np.ndarray:
        """Return the mask of missing values, bool."""
        nulls: np.ndarray = self.values.is_null().to_numpy()
        return nulls


def ids(column: Column, what: str = "id") -> pd.Series:
    """Return ids as text; text, bytes, UUIDs and whole numbers of any type are valid ids, fractions, dates and lists
    are not. ``what`` is for messages."""
    column = _decoded(column)
    kind = column.values.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = _whole(column)
    elif not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise column.refuse(f"wrong type: {kind} where text or whole numbers are expected")
    column.refuse_first(column.nulls, f"the {what} is missing")
    text = column.values.cast(pa.large_string())
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), False)
    column.refuse_first(blank.to_numpy(), f"the {what} is blank")
    result: pd.Series = text.to_pandas()
    return result


def _whole(column: Column) -> Column:
    """Return fractional numbers as whole ones of exact size, NaN as missing."""
    values = column.values
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values).cast(pa.float64())
        beyond = pc.fill_null(pc.greater(pc.abs(values), 2.0**53), False)
        column.refuse_first(beyond.to_numpy(), "{} is beyond 2^53, so it may not be the number that was meant")
    try:
        whole = values.cast(pa.int64() if pa.types.is_floating(values.type) else pa.decimal128(38, 0))
    except pa.ArrowInvalid as error:
        kind = column.values.type
        raise column.refuse(f"wrong type: {kind} where text or whole numbers are expected") from error
    return replace(column, values=whole)


def numbers(column: Column) -> np.ndarray:
    """Return finite numbers: int64 if all are integers, else float64."""
    column = _decoded(column)
    kind = column.values.type
    column.refuse_first(column.nulls, "the number is missing")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = _numpy(column)
    elif _is_text(kind):
        parsed = pd.to_numeric(column.values.to_pandas(), errors="coerce")
        column.refuse_first(parsed.isna().to_numpy(), "{} is not a number")
        values = parsed.to_numpy()
    else:
        raise column.refuse(f"wrong type: {kind} where numbers are expected")
    column.refuse_first(~np.isfinite(values), "{} is not a finite number")
    return values


def words(column: Column) -> list[str]:
    """Return one line of text per row, with blanks collapsed; empty if the value is missing; distinct values of lists
    are joined by commas."""
    column = _decoded(column)
    if not _is_list(column.values.type):
        return [" ".join((value or "").split()) for value in _as_text(column)]
    rows = [
        " ".join((value or "").split())
        for value in _as_text(Column(column.file, column.name, pc.list_flatten(column.values)))
    ]
    lengths = pc.fill_null(pc.list_value_length(column.values), 0).to_numpy()
    ends = np.cumsum(lengths)
    return [
        ", ".join(dict.fromkeys(value for value in rows[end - length : end] if value))
        for end, length in zip(ends, lengths, strict=True)
    ]


def _as_text(column: Column) -> list[str | None]:
    column = _decoded(column)
    kind = column.values.type
    simple = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    simple = simple or pa.types.is_decimal(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    if not (_is_text(kind) or simple or pa.types.is_null(kind)):
        raise column.refuse(f"wrong type: {kind} where text is expected")
    values = column.values
    if pa.types.is_decimal(kind):  # whole numbers as without a scale
        values = pc.replace_substring_regex(values.cast(pa.large_string()), r"\.0+$", "")
    if pa.types.is_floating(kind):  # NaN is how many tools write a missing number
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    texts: list[str | None] = values.cast(pa.large_string()).to_pylist()
    return texts


def _numpy(column: Column) -> np.ndarray:
    whole = pa.types.is_integer(column.values.type)
    try:
        numbers: np.ndarray = column.values.cast(pa.int64() if whole else pa.float64()).to_numpy()
        return numbers
    except pa.ArrowInvalid as error:
        raise column.refuse(f"a number is out of range ({str(error).splitlines()[0]})") from error


def _decoded(column: Column) -> Column:
    if pa.types.is_dictionary(column.values.type):
        column = replace(column, values=column.values.cast(column.values.type.value_type))
    kind = column.values.type
    if kind == pa.uuid():
        return replace(column, values=pa.chunked_array([[value and str(value) for value in column.values.to_pylist()]]))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        try:
            return replace(column, values=column.values.cast(pa.large_binary()).cast(pa.large_string()))
        except pa.ArrowInvalid as error:
            raise column.refuse("not UTF-8 text") from error
    return column


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
