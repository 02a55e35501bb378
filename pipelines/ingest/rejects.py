"""Unusable rows: stored in a table with file, row, column and reason, and refused if there are too many."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from pipelines.data.directory import shard_name
from pipelines.data.engine import DuckDbEngine
from setrec.errors import DataError

DEFAULT_SHARE = 0.01
"""Default share of rows of a table of several files that may be rejected."""
_PART_ROWS = 100_000


class Rejects:
    """The rejected rows of one table of the input.

    Args:
        engine: holds them in the table ``rejected_NAME``: ``file``, ``row`` (from 1), ``column``, ``reason``.
        name: ``interactions`` or ``items``.
        table: the table's location, for messages; ``items``: that of the items.
        files: the names of its files.
        share: share of rows that may be rejected; ``None`` refuses the first.
    """

    def __init__(
        self, engine: DuckDbEngine, name: str, table: str, files: list[str], share: float | None, items: str = ""
    ) -> None:
        self.engine, self.name, self.table, self.items, self.share = engine, f"rejected_{name}", table, items, share
        self.rows = 0
        engine.run(f'CREATE TABLE {self.name} (file VARCHAR, row BIGINT, "column" VARCHAR, reason VARCHAR)')
        engine.run(f"CREATE TABLE {self.name}_files (file INTEGER, name VARCHAR)")
        for number, file in enumerate(files):
            engine.run(f"INSERT INTO {self.name}_files VALUES (?, ?)", number, file)

    def collect(self, faulty: str, rows: int) -> None:
        """Store the rows of a query: ``file``, ``place`` (their order), ``number`` (in the file, from 1), ``fault``;
        the table has ``rows``."""
        self.rows = rows
        self.engine.run(
            f"INSERT INTO {self.name} SELECT f.name, faulty.number, faulty.fault.c, faulty.fault.r "
            f"FROM ({faulty}) AS faulty JOIN {self.name}_files AS f USING (file) ORDER BY faulty.place"
        )

    @property
    def count(self) -> int:
        """Return how many rows were rejected."""
        return int(self.engine.one(f"SELECT count(*) FROM {self.name}")[0])

    def check(self) -> None:
        """Raise an error if too many rows were rejected.

        Raises:
            DataError: with the number of rejected and of all rows, and the reason of the first.
        """
        rejected = self.count
        if not rejected or (self.share is not None and rejected <= self.share * self.rows):
            return
        file, row, column, reason = self.engine.one(f"SELECT * FROM {self.name} ORDER BY rowid LIMIT 1")
        first = DataError(reason, file=file, row=row, column=column)
        if self.share is None:
            raise first
        raise DataError(
            f"{rejected} of {self.rows} rows cannot be used, a larger share than data.rejected_share = "
            f"{self.share:g} allows; one of them: {first}",
            file=self.table,
        )

    def reasons(self) -> dict[str, int]:
        """Return how many rows were rejected by reason, without the values in reasons."""
        general = "regexp_replace(regexp_replace(reason, '''.*''', '…'), ': .*', '')"
        found = self.engine.all(f"SELECT {general}, count(*) FROM {self.name} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 100")
        return dict(found)


def faulty(raw: str, fault: str = "fault", where: str = "fault IS NOT NULL") -> str:
    """Return the query for :meth:`Rejects.collect` of a table with all rows in the order of their files."""
    first = f"(SELECT file, min(rowid) AS base FROM {raw} GROUP BY file)"
    rows = f"(SELECT file, rowid AS place, {fault} AS fault FROM {raw} AS raw WHERE {where})"
    return f"SELECT file, place, place - base + 1 AS number, fault FROM {rows} JOIN {first} USING (file)"


def save(parts: list[Rejects], folder: Path) -> None:
    """Write all rejected rows as ``folder/part-*.parquet``; without any, no folder is made."""
    number = 0
    for part in parts:
        for batch in part.engine.batches(f"SELECT * FROM {part.name} ORDER BY rowid", _PART_ROWS):
            if len(batch):
                folder.mkdir(exist_ok=True)
                import pyarrow as pa

                pq.write_table(pa.Table.from_batches([batch]), folder / shard_name(number), compression="zstd")
                number += 1
