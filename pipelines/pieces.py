"""Tables too large for one process: the files of a folder or URI, in pieces that tasks read block by block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.data_settings import Location
from setrec.errors import DataError
from setrec.formats import RawTable, read_raw

T = TypeVar("T")
_ATTEMPTS, _PAUSE = 3, 0.5


@dataclass(frozen=True)
class Piece:
    """Some row groups of one file. ``first_row``: rows of the whole table before this file; ``skipped``: rows of the
    file before the piece."""

    number: int
    file: int
    path: str
    first_row: int
    skipped: int
    rows: int
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A table as files. ``files``: the name of each; ``starts``: rows before each; ``schema``: of the first file."""

    where: str
    pieces: tuple[Piece, ...]
    files: tuple[str, ...]
    starts: tuple[int, ...]
    rows: int
    schema: pa.Schema | None

    @property
    def is_parquet(self) -> bool:
        """Whether pieces are row groups; otherwise the one piece is a file of another format."""
        return self.schema is not None

    def blocks(self, piece: Piece, columns: list[str] | None, rows: int) -> Iterator[tuple[RawTable, int]]:
        """Tables of up to ``rows`` rows, each with the number of the file's rows before it.

        Raises:
            DataError: the file is damaged or a column is missing.
        """
        if not self.is_parquet:
            yield read_raw(piece.path), 0
            return
        file, before = self._opened(piece.path), piece.skipped
        asked = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        batches = file.iter_batches(batch_size=rows, row_groups=list(piece.groups), columns=asked)
        while (batch := patiently(lambda: next(batches, None), self.files[piece.file])) is not None:
            table = pa.Table.from_batches([batch])
            yield RawTable(self.files[piece.file], table), before
            before += len(table)

    def place(self, row: int) -> tuple[str, int]:
        """File and row in it, from 1, of a row of the whole table, counted from 0."""
        at = max(i for i, start in enumerate(self.starts) if start <= row)
        return self.files[at], row - self.starts[at] + 1

    def _opened(self, path: str) -> pq.ParquetFile:
        system, _ = storage.filesystem(self.where)
        # Without pre_buffer a row group is read page by page: memory is bounded by the block, not by the row group.
        return patiently(lambda: pq.ParquetFile(system.open_input_file(path), pre_buffer=False), path)


def patiently(read: Callable[[], T], file: str) -> T:
    """``read()``, again after a pause where the store does not answer.

    Raises:
        DataError: it never did, or what it gave is damaged.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return read()
        except pa.ArrowInvalid as error:
            raise DataError("not a readable Parquet file (truncated or damaged)", file=file) from error
        except OSError as error:
            if attempt == _ATTEMPTS - 1:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise DataError(f"cannot be read ({reason})", file=file) from error
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


def source(
    where: Location, block_rows: int, columns: Callable[[list[str]], tuple[list[str], str | None]] | None = None
) -> Source:
    """Look at the footer of every file; pieces are row groups of about ``block_rows`` rows.

    ``columns`` says, given the names of the first file's columns, which are needed and which of them holds times.

    Raises:
        DataError: nothing is there, a file is damaged, or files disagree about the types of their columns.
    """
    infos = storage.files(where)
    parquet = [info.path for info in infos if info.path.endswith((".parquet", ".pq"))]
    if isinstance(where, Path) and where.is_file() and not parquet:
        return _single(where)
    if not parquet:
        raise DataError("no Parquet file is there" if infos else "no such file or folder", file=storage.shown(where))
    system, _ = storage.filesystem(where)
    with ThreadPoolExecutor(16) as pool:
        read = lambda path: patiently(lambda: _footer(system, path), path)  # noqa: E731
        footers = list(pool.map(read, parquet))
    if columns is not None:
        _agree(parquet, [schema for schema, _ in footers], *columns(footers[0][0].names))
    return _source(str(where), parquet, footers, block_rows)


def _footer(system: Any, path: str) -> tuple[pa.Schema, list[int]]:
    with system.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        return file.schema_arrow, [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]


def _single(path: Path) -> Source:
    piece = Piece(0, 0, str(path), 0, 0, read_raw(path).table.num_rows, ())
    return Source(str(path), (piece,), (str(path),), (0,), piece.rows, None)


def _source(where: str, paths: list[str], footers: list[tuple[pa.Schema, list[int]]], block_rows: int) -> Source:
    pieces: list[Piece] = []
    starts, rows = [], 0
    for file, (path, (_, groups)) in enumerate(zip(paths, footers, strict=True)):
        starts.append(rows)
        skipped = 0
        for chosen in _grouped(groups, block_rows):
            count = sum(groups[group] for group in chosen)
            pieces.append(Piece(len(pieces), file, path, rows, skipped, count, tuple(chosen)))
            skipped += count
        rows += skipped
    if not rows:
        raise DataError("holds no rows", file=storage.shown(where))
    return Source(where, tuple(pieces), tuple(paths), tuple(starts), rows, footers[0][0])


def _grouped(groups: list[int], block_rows: int) -> Iterator[list[int]]:
    chosen: list[int] = []
    held = 0
    for group, rows in enumerate(groups):
        if chosen and held + rows > block_rows:
            yield chosen
            chosen, held = [], 0
        chosen.append(group)
        held += rows
    if held:
        yield chosen


def _agree(paths: list[str], schemas: list[pa.Schema], columns: list[str], time: str | None) -> None:
    """Every file has the columns; times mean the same in all (other columns become text or numbers one by one)."""
    for path, schema in zip(paths, schemas, strict=True):
        for name in columns:
            if name not in schema.names:
                raise DataError(f"missing column (the file has: {', '.join(schema.names)})", file=path, column=name)
        if time is not None and _clock(schema.field(time).type) != _clock(schemas[0].field(time).type):
            reason = f"{schema.field(time).type} where {paths[0]} has {schemas[0].field(time).type}"
            raise DataError(reason, file=path, column=time)


def _clock(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_timestamp(kind):
        return "ns" if kind.unit == "ns" else "us"
    return "us" if pa.types.is_date(kind) else "text" if not pa.types.is_primitive(kind) else "number"
