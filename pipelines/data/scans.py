"""Files as relations: by DuckDB's own readers if a file is valid, otherwise row by row.

In both cases a relation has a row for every data row of the file, in its order, so a row's number is its position.
Data rows are counted from 1; neither the header nor empty lines count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import duckdb
import pyarrow as pa

from pipelines.data import lines, parquet
from pipelines.data.cells import Cell
from pipelines.data.engine import DuckDbEngine, literal, quoted
from pipelines.data.files import UNREADABLE, EmptyFileError, File, unreadable
from setrec.data.schema import ATOMIC_TYPES
from setrec.errors import ConfigError, DataError

_PEEKED, _BATCH = 1000, 20_000
_FILE_INDEX = "file_index"
"""DuckDB's column with the index of a row's file among several."""


@dataclass(frozen=True)
class Layout:
    """The structure of a file. ``names`` of its columns (of JSON, those in the first lines); ``types``: as stated by an
    atomic file; ``header``: whether the first line is one; ``delimiter`` and ``quote`` of text; ``more``: later files
    that are read with it (:func:`alike`)."""

    file: File
    names: list[str]
    types: dict[str, str] = field(default_factory=dict)
    header: bool = False
    delimiter: str = ""
    quote: str | None = None
    schema: pa.Schema | None = None
    more: tuple[File, ...] = ()

    def missing(self, name: str) -> DataError:
        """Return the error for a missing column."""
        there = " ".join(", ".join(self.names).split())
        return DataError(f"missing column (the file has: {there})", file=self.file.shown, column=name)

    def path(self, column: str) -> tuple[str, list[str]] | None:
        """Return the column of the file that contains ``column``, and the path inside it; ``None`` if there is none.

        A column whose name contains dots takes precedence over the path of that name.

        Raises:
            DataError: several columns have its name.
        """
        parts = column.split(".")
        for size in range(len(parts), 0, -1):
            top, rest = ".".join(parts[:size]), parts[size:]
            if top in self.names and (not rest or self.file.format in ("jsonl", "parquet")):
                if self.names.count(top) > 1:
                    raise DataError("the column name repeats", file=self.file.shown, column=top)
                return top, rest
        return None

    def lacking(self, wanted: list[str]) -> list[str]:
        """Return the ``wanted`` columns that are not in the file; of JSON, where any line may be the first with a
        name, all lines are searched for those that are not in ``names``."""
        left = [column for column in wanted if self.path(column) is None]
        if self.file.format == "jsonl" and left:
            for line in lines.lines(self.file):
                if any(_as_bytes(column.split(".")[0]) in line for column in left):
                    left = [column for column in left if column.split(".")[0] not in _keys(line)]
                    if not left:
                        break
        return left


def alike(files: list[File]) -> Iterator[list[File]]:
    """Group consecutive files that can be read together.

    These are local Parquet files with the same columns: DuckDB gives each row group to one core, and many files have
    one.
    """
    some, columns = list[File](), None
    for file in files:
        its = _columns(file)
        if some and (its is None or its != columns):
            yield some
            some = []
        some, columns = [*some, file], its
    if some:
        yield some


def _columns(file: File) -> pa.Schema | None:
    if file.format != "parquet" or file.path is None:
        return None
    try:
        columns = parquet.schema(file).remove_metadata()
    except (DataError, *UNREADABLE):
        return None  # reading the file reports the error
    return None if _FILE_INDEX in map(str.lower, columns.names) else columns


def layout(file: File, more: Iterable[File] = ()) -> Layout:
    """Return the structure of a file on this machine, and of ``more`` that are :func:`alike`.

    Raises:
        DataError: it cannot be read, its header cannot be used, or no delimiter is known.
    """
    if file.format == "parquet":
        schema = parquet.schema(file)
        return Layout(file, schema.names, schema=schema, more=tuple(more))
    if file.format == "jsonl":
        names = (name for line in islice(lines.lines(file), _PEEKED) for name in _keys(line))
        return Layout(file, list(dict.fromkeys(names)))
    return _text_layout(file)


def _keys(line: str) -> list[str]:
    """Return the names of the members of the object on a line of JSON; none if it holds no object."""
    with suppress(ValueError, RecursionError):
        record = json.loads(lines.decoded(line) or "")
        return list(record) if isinstance(record, dict) else []
    return []


def _as_bytes(text: str) -> str:
    """Return a text as in :func:`pipelines.data.lines.lines`, where a character is a byte."""
    return text.encode().decode("latin-1")


def _text_layout(file: File) -> Layout:
    settings, atomic = file.settings, file.format == "atomic"
    delimiter = settings.delimiter or file.delimiter or ("\t" if atomic else None)
    if delimiter is None:
        raise DataError("its name does not imply a delimiter: state it (data.reader.delimiter)", file=file.shown)
    quote = None if atomic or settings.quote == delimiter else settings.quote
    header = settings.columns is None if settings.header is None else settings.header
    first, reason = next(lines.delimited(file, delimiter, quote), ([], ""))
    if not reason and not "".join(first or []).strip():
        raise EmptyFileError(file)
    titles = None if first is None else [lines.decoded(title) for title in first]
    if header and (titles is None or None in titles):
        raise DataError(f"the header cannot be read ({reason or lines.BAD_TEXT})", file=file.shown)
    names = [title or "" for title in titles or []]
    types: dict[str, str] = {}
    if settings.columns is not None:
        names = list(settings.columns)
    elif atomic:
        for title in names:
            name, _, kind = title.rpartition(":")
            if not name or kind not in ATOMIC_TYPES:
                reason = f"header must be name:type, type one of {', '.join(ATOMIC_TYPES)}"
                raise DataError(reason, file=file.shown, column=title)
            types[name] = kind
        names = [title.rpartition(":")[0] for title in names]
    return Layout(file, names, types, header, delimiter, quote)


Use = Callable[[str, dict[str, Cell]], None]
"""Receives the name of a relation with columns ``file`` (its number) and ``fault`` (text), and the wanted cells."""


def scan(engine: DuckDbEngine, found: Layout, wanted: list[str], use: Use) -> None:
    """Call ``use`` with the rows of a layout, in parts or at once; again after an error of DuckDB.

    Raises:
        DataError: a column is missing, or the file is damaged.
    """
    file = found.file
    paths = {}
    for column in wanted:
        paths[column] = found.path(column)
        if paths[column] is None and file.format != "jsonl":
            raise found.missing(column)
    tops = list(dict.fromkeys(path[0] if path else column.split(".")[0] for column, path in paths.items()))
    if file.format == "parquet":
        _scan_parquet(engine, found, tops, paths, use)
        return
    kind = "json" if file.format == "jsonl" else "text"
    cells = {}
    for column, path in paths.items():
        top, rest = path or (column.split(".")[0], column.split(".")[1:])
        sql = f"c{tops.index(top)}"
        cells[column] = Cell(
            file.shown, column, f"json_extract({sql}, {literal(pointer(rest))})" if rest else sql, kind
        )
    plain = not _starts_blank(file) and len(found.delimiter.encode()) <= 4
    if plain and _read_natively([file], lambda: use(_native(found, tops), cells)):
        return
    type_ = "JSON" if kind == "json" else "VARCHAR"
    selected = ", ".join(f"c{i}::{type_} AS c{i}" for i in range(len(tops)))
    rows = lines.rows_of_json(file, tops) if kind == "json" else lines.rows_of_text(
        file, found.delimiter, found.quote, found.names, found.header, tops
    )  # fmt: skip
    schema = pa.schema([*((f"c{i}", pa.string()) for i in range(len(tops))), ("fault", pa.string())])
    _arriving(
        engine, file, _batches(rows, schema), schema,
        lambda name: use(f"(SELECT {file.number} AS file, {selected}, fault FROM {name})", cells),
    )  # fmt: skip


def _read_natively(files: list[File], read: Callable[[], None]) -> bool:
    """Return whether DuckDB's own reader read the files; if not, one of them contains an error to be found."""
    if any(set(str(file.path)) & set("*?[") for file in files):  # it would interpret the name as a pattern
        return False
    try:
        read()
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error:
        return False
    return True


def pointer(path: list[str]) -> str:
    """Return the JSON pointer of a path."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def _arriving(
    engine: DuckDbEngine, file: File, batches: Iterator[pa.RecordBatch], schema: pa.Schema, use: Callable[[str], None]
) -> None:
    raised: list[BaseException] = []

    def guarded() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except UNREADABLE as error:
            raised.append(unreadable(file, error))
            raise
        except BaseException as error:
            raised.append(error)
            raise

    try:
        engine.scanned(guarded(), schema, use, raised)
    except (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InterruptException):
        raise
    except duckdb.Error as error:
        raise unreadable(file, error) from error


def _starts_blank(file: File) -> bool:
    with file.open() as source:
        return source.read(1) in (b"\n", b"\r")


def _native(found: Layout, tops: list[str]) -> str:
    """Return DuckDB's own reader of the file, which raises for an invalid row."""
    file, name = found.file, literal(str(found.file.path))
    packed = literal(file.packed or "none")
    # Columns of text have their place as their name: names that nobody asks for may repeat, and DuckDB ignores case.
    at = tops if file.format == "jsonl" else [str(found.names.index(top)) for top in tops]
    columns = ", ".join(f"{quoted(top)} AS c{i}" for i, top in enumerate(at))
    selected = f"{file.number} AS file, {columns}, NULL::VARCHAR AS fault"
    if file.format == "jsonl":
        columns = ", ".join(f"{literal(top)}: 'JSON'" for top in tops)
        options = f"format = 'newline_delimited', records = true, compression = {packed}, columns = {{{columns}}}"
        return f"(SELECT {selected} FROM read_json({name}, {options}))"
    columns = ", ".join(f"'{i}': 'VARCHAR'" for i in range(len(found.names)))
    quote = literal(found.quote or "")
    options = (
        f"auto_detect = false, header = {str(found.header).lower()}, delim = {literal(found.delimiter)}, "
        f"quote = {quote}, escape = {quote}, compression = {packed}, strict_mode = true, null_padding = false, "
        f"columns = {{{columns}}}"
    )
    return f"(SELECT {selected} FROM read_csv({name}, {options}))"


def _native_parquet(files: list[File], tops: list[str]) -> str:
    """Return DuckDB's own reader of files with the same columns and consecutive numbers."""
    columns = ", ".join(f"{quoted(top)} AS c{i}" for i, top in enumerate(tops))
    names = ", ".join(literal(str(file.path)) for file in files)
    number = f"({files[0].number} + {_FILE_INDEX})::INTEGER" if len(files) > 1 else files[0].number
    return f"(SELECT {number} AS file, {columns}, NULL::VARCHAR AS fault FROM read_parquet([{names}]))"


def _batches(rows: Iterator[lines.Row], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    width = len(schema) - 1
    while some := list(islice(rows, _BATCH)):
        columns: list[list[str | None]] = [[] for _ in range(width + 1)]
        for values, reason in some:
            for at in range(width):
                columns[at].append(None if values is None else values[at])
            columns[width].append(reason or None)
        yield pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=schema)


def _scan_parquet(
    engine: DuckDbEngine, found: Layout, tops: list[str], paths: dict[str, tuple[str, list[str]] | None], use: Use
) -> None:
    assert found.schema is not None
    plans = [parquet.plan(found.schema.field(top).type) for top in tops]
    cells = {}
    for column, path in paths.items():
        assert path is not None
        at = tops.index(path[0])
        sql, kind, unit = f"c{at}", plans[at].kind, plans[at].unit
        if path[1]:
            if kind != "json":
                raise found.missing(column)
            sql = f"json_extract({sql}, {literal(pointer(path[1]))})"
        cells[column] = Cell(found.file.shown, column, sql, kind, str(found.schema.field(path[0]).type), unit)
    folded = [name.lower() for name in found.names]  # DuckDB would take the first of names that differ in case only
    plain = all(parquet.is_plain(found.schema.field(top).type) and folded.count(top.lower()) == 1 for top in tops)

    as_json = ", ".join(f"to_json(c{i}) AS c{i}" if plan.kind == "json" else f"c{i}" for i, plan in enumerate(plans))

    def natively(files: list[File]) -> bool:
        native = f"(SELECT file, {as_json}, fault FROM {_native_parquet(files, tops)})"
        return plain and _read_natively(files, lambda: use(native, cells))

    if natively([found.file, *found.more]):
        return
    schema = pa.schema([*((f"c{i}", plan.type) for i, plan in enumerate(plans)), ("fault", pa.string())])
    for file in (found.file, *found.more):
        if found.more and natively([file]):
            continue

        def use_arriving(name: str, number: int = file.number) -> None:
            use(f"(SELECT {number} AS file, {as_json}, fault FROM {name})", cells)

        _arriving(engine, file, parquet.batches(file, tops, plans, schema), schema, use_arriving)


def check_pattern(engine: DuckDbEngine, pattern: str | None) -> None:
    """Refuse a pattern of times that DuckDB does not accept.

    Raises:
        ConfigError: the pattern is invalid; the message gives the reason.
    """
    if pattern is not None:
        try:
            engine.all(f"SELECT try_strptime('x', {literal(pattern)})")
        except duckdb.Error as error:
            reason = str(error).splitlines()[0].rpartition("Error: ")[2]
            raise ConfigError(f"data.columns.time_format: {reason}") from error
