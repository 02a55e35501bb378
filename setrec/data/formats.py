"""Readers of Parquet, CSV, JSON lines and RecBole's atomic files as Arrow tables. Values are not interpreted here.

Rows in error messages are data rows, counted from 1: neither the header nor blank lines count.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from setrec.data.schema import ATOMIC_TYPES
from setrec.errors import DataError


@dataclass(frozen=True)
class RawTable:
    """The raw table of ``file``; ``types``: the column types of an atomic file, empty for other formats; ``unusable``:
    columns that cannot be read, which matters only to those who ask for them, and the reasons."""

    file: Path | str
    table: pa.Table
    types: dict[str, str] = field(default_factory=dict)
    unusable: dict[str, DataError] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Return the names of all columns."""
        return [*self.table.column_names, *self.unusable]

    def renamed(self, new: Callable[[str], str]) -> RawTable:
        """Return the table with other names of its columns."""
        table = self.table.rename_columns([new(name) for name in self.table.column_names])
        return RawTable(self.file, table, self.types, {new(name): error for name, error in self.unusable.items()})

    def column(self, name: str) -> pa.ChunkedArray:
        """Return the column ``name``; DataError if there is none, or if it cannot be read."""
        if name in self.unusable:
            raise self.unusable[name]
        if name not in self.table.column_names:
            there = " ".join(", ".join(self.names).split())
            raise DataError(f"missing column (the file has: {there})", file=self.file, column=name)
        return self.table[name]


def read_raw(path: str | Path) -> RawTable:
    """Read a file of any of the formats, identified by its suffix.

    Raises:
        DataError: missing, empty, damaged or malformed file, or unknown format.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"unknown format '{path.suffix}' (known: {', '.join(_READERS)})", file=path)
    if not path.is_file():
        raise DataError("is a directory" if path.is_dir() else "no such file", file=path)
    try:
        if path.stat().st_size == 0:
            raise DataError("the file is empty", file=path)
        if reader is not _read_parquet:
            _refuse_non_utf8(path)
        raw = reader(path)
    except OSError as error:
        raise DataError(f"cannot be read ({_line(error)})", file=path) from error
    if raw.table.num_rows == 0:
        raise DataError("holds no rows", file=path)
    return raw


def _read_parquet(path: Path) -> RawTable:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError("not a readable Parquet file (truncated or damaged)", file=path) from error
    raw = _without_repeats(path, table)
    bad: dict[str, DataError] = {}
    for name in raw.table.column_names:
        try:
            raw.table[name].validate(full=True)
        except pa.ArrowException as error:
            reason = "not UTF-8 text" if "UTF8" in str(error) else f"cannot be read ({_line(error)})"
            bad[name] = DataError(reason, file=path, column=name)
    return RawTable(path, raw.table.drop_columns(list(bad)), {}, raw.unusable | bad)


def _read_csv(path: Path) -> RawTable:
    return _without_repeats(path, _read_delimited(path, pa_csv.ParseOptions(newlines_in_values=True)))


def _read_atomic(path: Path) -> RawTable:
    types: dict[str, str] = {}
    for title in _header(path, "\t", csv.QUOTE_NONE):
        name, _, kind = title.rpartition(":")
        if not name or kind not in ATOMIC_TYPES:
            raise DataError(f"header must be name:type, type one of {', '.join(ATOMIC_TYPES)}", file=path, column=title)
        types[name] = kind
    table = _read_delimited(path, pa_csv.ParseOptions(delimiter="\t", quote_char=False, double_quote=False))
    names = [title.rpartition(":")[0] for title in table.column_names]
    raw = _without_repeats(path, table.rename_columns(names))
    return RawTable(path, raw.table, types, raw.unusable)


def _header(path: Path, delimiter: str, quoting: int) -> list[str]:
    with open(path, encoding="utf-8-sig", newline="") as lines:
        try:
            names = next(csv.reader(lines, delimiter=delimiter, quoting=quoting), [])  # type: ignore[arg-type]
        except csv.Error as error:
            raise DataError(f"the header cannot be read ({_line(error)})", file=path) from error
    return names


def _without_repeats(path: Path, table: pa.Table) -> RawTable:
    """Return a table whose columns of the same name are unusable."""
    names = table.column_names
    once = [at for at, name in enumerate(names) if names.count(name) == 1]
    again = {name: DataError("the column name repeats", file=path, column=name)
             for name in names if names.count(name) > 1}  # fmt: skip
    return RawTable(path, table.select(once), {}, again)


def _read_delimited(path: Path, parse: pa_csv.ParseOptions) -> pa.Table:
    """Read every column as text: the schema decides which are numbers, and ids such as 007 must not change."""
    bad: list[pa_csv.InvalidRow] = []

    def refuse(row: pa_csv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    parse.invalid_row_handler = refuse
    names = _header(path, parse.delimiter, csv.QUOTE_MINIMAL if parse.quote_char else csv.QUOTE_NONE)
    convert = pa_csv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False)
    try:
        # The parser reports the number of a malformed row only with one thread.
        return pa_csv.read_csv(path, pa_csv.ReadOptions(use_threads=False), parse, convert)
    except pa.ArrowException as error:
        if bad:
            reason = f"{bad[0].actual_columns} values where the header has {bad[0].expected_columns} columns"
            raise DataError(reason, file=path, row=bad[0].number - 1) from error
        raise DataError(f"cannot be read ({_line(error)})", file=path) from error


def _read_json_lines(path: Path) -> RawTable:
    try:
        table = pa_json.read_json(path)
        # The parser converts text that looks like a date; ids and titles must stay unchanged.
        as_text = pa.schema([column.with_type(_dates_as_text(column.type)) for column in table.schema])
        if as_text != table.schema:
            table = pa_json.read_json(path, parse_options=pa_json.ParseOptions(explicit_schema=as_text))
        table.validate(full=True)
    except (pa.ArrowException, RecursionError):
        return _read_json_slowly(path)
    return RawTable(path, table)


def _dates_as_text(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_dates_as_text(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_dates_as_text(field.type)) for field in kind.fields])
    return kind


def _read_json_slowly(path: Path) -> RawTable:
    """Read line by line, to locate the error that Arrow reported; unused columns may contain anything."""
    records = list(_json_records(path))
    columns: dict[str, pa.Array] = {}
    unusable: dict[str, DataError] = {}
    for name in dict.fromkeys(name for record in records for name in record):
        try:
            columns[name] = _json_column(path, name, [record.get(name) for record in records])
        except DataError as error:
            unusable[name] = error
    # A table without columns has no rows.
    return RawTable(path, pa.table(columns or {"": pa.nulls(len(records))}), {}, unusable)


def _json_records(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as lines:
        for row, line in enumerate((line for line in lines if line.strip()), start=1):
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"malformed JSON ({_line(error)})", file=path, row=row) from error
            if not isinstance(record, dict):
                raise DataError(f"expected a JSON object, found {type(record).__name__}", file=path, row=row)
            yield record


def _json_column(path: Path, name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        pass
    if all(value is None or type(value) in (str, int) for value in values):
        with suppress(UnicodeEncodeError):  # text and whole numbers of any size: ids, or labels
            return pa.array([None if value is None else str(value) for value in values], pa.string())
    kinds: list[type] = [type(value) for value in values if value is not None]
    for row, value in enumerate(values, start=1):
        if value is not None and type(value) is not kinds[0]:
            reason = f"wrong type: {type(value).__name__} where earlier rows hold {kinds[0].__name__}"
            raise DataError(reason, file=path, row=row, column=name)
        try:
            pa.array([value])
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            raise DataError(f"unusable value ({_line(error)})", file=path, row=row, column=name) from error
    raise DataError("values of different types", file=path, column=name)


def _refuse_non_utf8(path: Path) -> None:
    """Reject files that are not UTF-8 before parsing: parsers report it late, without the location, or not at all."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as blocks:
        try:
            while block := blocks.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise DataError("not UTF-8 text", file=path, row=_first_non_utf8_row(path)) from None


def _first_non_utf8_row(path: Path) -> int | None:
    """Return the data row of the first line that is not UTF-8; None for the header."""
    row = 0 if path.suffix.lower() in (".jsonl", ".ndjson") else -1
    with open(path, "rb") as lines:
        for line in lines:
            row += bool(line.strip())
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
    return row or None


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


_READERS: dict[str, Callable[[Path], RawTable]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".inter": _read_atomic,
    ".item": _read_atomic,
    ".kg": _read_atomic,
    ".link": _read_atomic,
}
