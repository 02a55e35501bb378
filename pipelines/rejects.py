"""Rows that could not be used: kept in a table with file, row, column and reason, and refused where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.data_directory import shard_name
from setrec.columns import Faults
from setrec.errors import DataError

DEFAULT_SHARE = 0.01
"""Of a streamed table's rows, how many may be rejected."""
SCHEMA = pa.schema([("file", pa.string()), ("row", pa.int64()), ("column", pa.string()), ("reason", pa.string())])
_PART_ROWS = 100_000


@dataclass
class Rejected:
    """Rejected rows of one block; ``row`` counts a file's rows from 1."""

    file: list[str] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    column: list[str] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.row)

    def add(self, file: str, row: int, column: str, reason: str) -> None:
        """Note one row."""
        self.file.append(file)
        self.row.append(row)
        self.column.append(column)
        self.reason.append(reason)

    def add_faults(self, faults: Faults, file: str, first_row: int = 0) -> None:
        """Note the faults of a table that begins after ``first_row`` rows of ``file``."""
        for row, (column, reason) in sorted(faults.items()):
            self.add(file, first_row + row + 1, column, reason)

    def first(self) -> str:
        """One line about the first, nothing where there is none."""
        return str(DataError(self.reason[0], file=self.file[0], row=self.row[0], column=self.column[0])) if self else ""

    def save(self, where: str) -> None:
        """Write Parquet, where there is something to write."""
        if self:
            with storage.atomic_stream(where) as stream:
                pq.write_table(pa.table(self.__dict__, SCHEMA), stream, compression="zstd")


@dataclass
class Tally:
    """How many of a table's ``rows`` were rejected, and the first of them; ``share``: how many may be."""

    table: str
    share: float
    rows: int = 0
    rejected: int = 0
    first: str = ""

    def add(self, rejected: int, first: str) -> None:
        """Count so many more; :meth:`check` says whether these are too many."""
        self.rejected += rejected
        # Blocks come in the order they finish; the message should not depend on it.
        self.first = min(filter(None, (self.first, first)), default="")

    def check(self) -> None:
        """Raise where too many were rejected.

        Raises:
            DataError: with how many of how many, and the reason of one.
        """
        if self.rejected > self.share * self.rows:
            raise DataError(
                f"{self.rejected} of {self.rows} rows cannot be used, a larger share than data.rejected_share = "
                f"{self.share:g} allows; one of them: {self.first}",
                file=self.table,
            )


def gather(parts: Sequence[str], folder: Path) -> None:
    """Bring the files ``parts``, local or by URI, together as ``folder/part-*.parquet``; no folder where none is."""
    held: list[pa.Table] = []
    number = 0
    for at, where in enumerate(parts):
        system, path = storage.filesystem(where)
        held.append(pq.read_table(path, filesystem=system))
        if sum(map(len, held)) >= _PART_ROWS or at == len(parts) - 1:
            folder.mkdir(exist_ok=True)
            pq.write_table(pa.concat_tables(held), folder / shard_name(number), compression="zstd")
            held, number = [], number + 1
