"""Reading of Parquet files of any physical types as Arrow batches of plain types; times are numbers with a unit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data.files import File
from pipelines.data.lines import BAD_TEXT
from setrec.errors import DataError

_ROWS = 100_000
_WHOLE_AS_FLOAT = re.compile("-?[0-9]+[.]0")


@dataclass(frozen=True)
class ColumnPlan:
    """The conversion of a column: its Arrow ``type``, the ``kind`` of its cells (``pipelines.data.cells``), and the
    ``unit`` of instants."""

    type: pa.DataType
    kind: str
    unit: str = ""


def schema(file: File) -> pa.Schema:
    """Return the columns of a file.

    Raises:
        DataError: it is damaged or not Parquet.
    """
    return _opened(file).schema_arrow


def plan(kind: pa.DataType) -> ColumnPlan:
    """Return the conversion of a column of a type."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if _is_text(kind) or pa.types.is_null(kind):
        return ColumnPlan(pa.large_string(), "text")
    if pa.types.is_integer(kind):
        return ColumnPlan(kind, "whole")
    if pa.types.is_floating(kind):
        return ColumnPlan(pa.float64(), "real")
    if pa.types.is_decimal(kind):
        return ColumnPlan(pa.large_string(), "text")
    if kind == pa.uuid():
        return ColumnPlan(kind, "text")
    if pa.types.is_timestamp(kind):
        return ColumnPlan(pa.int64(), "instant", kind.unit)
    if pa.types.is_date32(kind):
        return ColumnPlan(pa.int64(), "instant", "d")
    if pa.types.is_date64(kind):
        return ColumnPlan(pa.int64(), "instant", "ms")
    if pa.types.is_nested(kind):
        return ColumnPlan(_plain(kind), "json")
    return ColumnPlan(kind, "other")


def is_plain(kind: pa.DataType) -> bool:
    """Return whether DuckDB's own reader, which uses all cores, reads a column of a type as :func:`batches` does."""
    if pa.types.is_list(kind):
        return is_plain(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_int32(kind) or pa.types.is_int64(kind) or pa.types.is_float64(kind)
    )


def batches(file: File, names: list[str], plans: list[ColumnPlan], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the columns ``names`` as planned, with a column that marks rows with invalid UTF-8 as faulty.

    Raises:
        DataError: the file is damaged.
    """
    try:
        for batch in _opened(file).iter_batches(batch_size=_ROWS, columns=names):
            faults: list[str | None] = [None] * len(batch)
            arrays = [_planned(batch.column(name), each, faults) for name, each in zip(names, plans, strict=True)]
            yield pa.record_batch([*arrays, pa.array(faults, pa.string())], schema=schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(file) from error


def _opened(file: File) -> pq.ParquetFile:
    assert file.path is not None
    try:
        # Without pre_buffer a row group is read page by page, so the batch bounds memory, not the row group.
        return pq.ParquetFile(file.path, pre_buffer=False)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(file) from error


def _damaged(file: File) -> DataError:
    return DataError("not a readable Parquet file (truncated or damaged)", file=file.shown)


def _planned(column: pa.Array, planned: ColumnPlan, faults: list[str | None]) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if planned.kind == "text" and _is_text(column.type):
        return _text(column, faults)
    if planned.kind == "instant":
        width = pa.int32() if pa.types.is_date32(column.type) else pa.int64()
        return column.view(width).cast(pa.int64())
    if planned.kind == "json":
        return _nested(column, planned.type, faults)
    if pa.types.is_decimal(column.type):  # whole numbers as without a scale
        return pc.replace_substring_regex(column.cast(planned.type), r"\.0+$", "")
    return column.cast(planned.type)


def _nested(column: pa.Array, kind: pa.DataType, faults: list[str | None]) -> pa.Array:
    try:
        column.validate(full=True)  # a cast does not check text inside lists
        return column.cast(kind)
    except pa.ArrowInvalid as error:
        if len(column) > 1:
            parts, found = [], [list[str | None]([None]) for _ in faults]
            for row, fault in enumerate(found):
                parts.append(_nested(column.take([row]), kind, fault))
                faults[row] = fault[0] or faults[row]
            return pa.concat_arrays(parts)
        faults[0] = BAD_TEXT if "UTF8" in str(error) else str(error).splitlines()[0]
        return pa.nulls(1, kind)


def _text(column: pa.Array, faults: list[str | None]) -> pa.Array:
    # Only a cast from bytes checks the bytes.
    raw = column.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string())
    except pa.ArrowInvalid:
        values = []
        for row, value in enumerate(raw.to_pylist()):
            try:
                values.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                values.append(None)
                faults[row] = BAD_TEXT
        return pa.array(values, pa.large_string())


def is_list(kind: pa.DataType) -> bool:
    """Return whether values of a type are lists, of any of Arrow's five kinds."""
    return hasattr(kind, "value_type") and not pa.types.is_map(kind) and not pa.types.is_dictionary(kind)


def holds_ids(kind: pa.DataType) -> bool:
    """Return whether a column of a type can contain ids."""
    return plan(kind).kind in ("text", "whole", "real")


def ids(column: pa.ChunkedArray | pa.Array) -> list[str | None]:
    """Return the ids of a column of text or numbers of any physical type, as ingest reads them; bytes that are not
    UTF-8 are replaced."""
    return [id_of(value) for value in column.cast(_as_ids(column.type)).to_pylist()]


def lists_of_ids(column: pa.ChunkedArray) -> list[list[str | None] | None]:
    """Return the lists of a column of lists of ids, or of nulls."""
    if pa.types.is_null(column.type):
        return [None] * len(column)
    lists = column.cast(pa.large_list(_as_ids(column.type.value_type))).to_pylist()
    return [None if values is None else [id_of(value) for value in values] for values in lists]


def _as_ids(kind: pa.DataType) -> pa.DataType:
    """Return the type to cast ids of a type to: text as bytes, because invalid text cannot become Python's."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.large_binary() if _is_text(kind) else kind


def id_of(value: Any) -> str | None:
    """Return the id of a value; a whole number as a float has the id of the whole number."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return value[:-2] if _WHOLE_AS_FLOAT.fullmatch(value) else value
    if value is None or value != value:
        return None
    return str(int(value)) if isinstance(value, float | Decimal) and value % 1 == 0 else str(value)


def _is_text(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (
            pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
            pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary,
        )
    )  # fmt: skip


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type with the lists, text and numbers of DuckDB."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if _is_text(kind) or pa.types.is_null(kind) or pa.types.is_decimal(kind):
        return pa.string()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind.fields])
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    if is_list(kind):
        return pa.large_list(_plain(kind.value_type))
    return kind
