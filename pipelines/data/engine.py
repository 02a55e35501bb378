"""DuckDB for one ingest: a database in memory that spills to a bounded folder, removed after the block."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.data.settings import DataSettings
from setrec.errors import ConfigError


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


class DuckDbEngine:
    """A connection, and the folder it spills to."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, scratch: Path) -> None:
        self.connection, self.scratch = connection, scratch

    def run(self, query: str, *values: Any) -> None:
        """Execute a statement with parameters."""
        self.connection.execute(query, values or None)

    def one(self, query: str, *values: Any) -> tuple[Any, ...]:
        """Return the first row of a query with few rows."""
        return self.all(query, *values)[0]

    def all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return all rows of a query in memory."""
        return self.connection.execute(query, values or None).fetchall()

    def table(self, query: str) -> pa.Table:
        """Return all rows of a query, in its order, in memory."""
        return self.connection.sql(query).to_arrow_table()

    def batches(self, query: str, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a query in its order, about ``rows`` at a time, through a separate cursor."""
        cursor = self.connection.cursor()
        cursor.execute("USE work")
        try:
            yield from cursor.sql(query).to_arrow_reader(rows)
        finally:
            cursor.close()

    def insert(self, table: str, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> None:
        """Append batches to a table, in their order; errors of the iterator are raised."""
        raised: list[BaseException] = []

        def guarded() -> Iterator[pa.RecordBatch]:
            try:
                yield from batches
            except BaseException as error:
                raised.append(error)
                raise

        self.scanned(guarded(), schema, lambda name: self.run(f"INSERT INTO {table} SELECT * FROM {name}"), raised)

    def scanned(
        self,
        batches: Iterator[pa.RecordBatch],
        schema: pa.Schema,
        use: Callable[[str], None],
        raised: list[BaseException],
    ) -> None:
        """Call ``use`` with the name of a relation that holds the batches; raises the first of ``raised``, if any."""
        self.connection.register("arriving", pa.RecordBatchReader.from_batches(schema, batches))
        try:
            use("arriving")
        except duckdb.Error as error:
            if raised:
                raise raised[0] from error
            raise
        finally:
            self.connection.unregister("arriving")


@contextmanager
def engine(config: DataSettings, out: Path, threads: int | None = None) -> Iterator[DuckDbEngine]:
    """Open an engine that holds at most ``config.memory_limit`` and spills at most ``config.scratch_limit``, on all
    cores or on ``threads``.

    Raises:
        ConfigError: memory or disk space does not suffice, or the folder cannot be made.
    """
    parent = Path(out.parent if config.scratch is None else config.scratch)
    made = _make(parent)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".spill", dir=parent.resolve()))
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": config.memory_limit,
        "temp_directory": str(scratch),
        "max_temp_directory_size": config.scratch_limit,
        "autoinstall_known_extensions": "false",
        "threads": str(threads or len(os.sched_getaffinity(0))),
    }
    try:
        connection = duckdb.connect(config=settings)
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        # Compressed tables take a third of the space, in memory and on disk.
        connection.execute("ATTACH ':memory:' AS work (COMPRESS true); USE work")
        with connection:
            yield DuckDbEngine(connection, scratch)
    except duckdb.OutOfMemoryException as error:
        limits = f"data.memory_limit = {config.memory_limit}, data.scratch_limit = {config.scratch_limit}"
        raise ConfigError(f"ingest needs more room than it has ({limits}): {str(error).splitlines()[0]}") from error
    except duckdb.IOException as error:
        raise ConfigError(f"ingest cannot use its folder {scratch}: {str(error).splitlines()[0]}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder with its parents; return the new ones, the innermost first."""
    new = []
    at = folder
    while not at.exists():
        new.append(at)
        at = at.parent
    folder.mkdir(parents=True, exist_ok=True)
    return new
