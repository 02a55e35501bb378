"""Live state in one SQLite file, for all processes of a machine.

Write-ahead logging with ``synchronous=FULL``: a commit is on disk before it is acknowledged, so neither a killed
process nor a power failure loses acknowledged events (if the disk flushes reliably). Such a commit takes milliseconds
(4 ms measured), so each process has one writer thread that commits all waiting calls together: 230 events a second from
one caller who awaits every answer, 40 thousand in commits of 256. The file must be on a local disk, not on a network
share.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from serving.stores.base import (
    Appended,
    Change,
    Event,
    ItemKind,
    LiveHistory,
    Position,
    RulesKind,
    StoredEvent,
    StoreError,
    subject_of,
)

FORMAT = 2
_APPLICATION = 0x73657472  # "setr": distinguishes these files from other SQLite databases
_BUSY_SECONDS = 5.0  # maximum wait for another process's commit
_AT_ONCE = 256  # maximum number of calls in one commit
_SCHEMA = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, item_id TEXT NOT NULL, time REAL NOT NULL, key TEXT,
    type TEXT NOT NULL DEFAULT ''
);
CREATE INDEX history ON events (user_id, time, seq, item_id, type);
CREATE UNIQUE INDEX once ON events (user_id, key) WHERE key IS NOT NULL;
CREATE TABLE changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, subject TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL, payload TEXT,
    UNIQUE (subject, id)
);
"""
_UPGRADE = """
ALTER TABLE events ADD COLUMN type TEXT NOT NULL DEFAULT '';
DROP INDEX history;
CREATE INDEX history ON events (user_id, time, seq, item_id, type);
"""
"""Upgrade from format 1, which had no types of events."""
_ADD = "INSERT OR IGNORE INTO events (user_id, item_id, time, key, type) VALUES (?, ?, ?, ?, ?)"
_LATEST = "SELECT item_id, type FROM events WHERE user_id = ? ORDER BY time DESC, seq DESC LIMIT ?"
_PAGE = (
    "SELECT item_id, time, seq, type FROM events WHERE user_id = ? AND (time, seq) < (?, ?) "
    "ORDER BY time DESC, seq DESC LIMIT ?"
)
_ERASED = "SELECT EXISTS (SELECT 1 FROM changes WHERE subject = 'user' AND id = ?)"
_LOG = "INSERT OR REPLACE INTO changes (subject, id, kind, payload) VALUES (?, ?, ?, ?)"
_CHANGES = "SELECT seq, kind, id, payload FROM changes WHERE seq > ? ORDER BY seq LIMIT ?"

T = TypeVar("T")
_Work = Callable[[sqlite3.Connection], Any]


class SqliteStore:
    """A :class:`serving.stores.base.LiveStore` in the file ``path``."""

    def __init__(self, path: str | Path) -> None:
        """Open the file, and create it if missing.

        Raises:
            StoreError: it cannot be opened or written, is not such a store, or has a newer format.
        """
        self.path = Path(path)
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._waiting: queue.SimpleQueue[tuple[_Work, Future[Any]] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        with self._translated():
            self._connection = self._connect()
            try:
                _prepare(self._connection, self.path)
            except BaseException:
                self._connection.close()
                raise
        self._writer = threading.Thread(target=self._write, name="store-writer", daemon=True)
        self._writer.start()

    def append(self, events: Sequence[Event]) -> Appended:
        """See :class:`serving.stores.base.HistoryStore`."""
        rows = [(event.user_id, event.item_id, event.time, event.key, event.type) for event in events]

        def work(connection: sqlite3.Connection) -> Appended:
            accepted = connection.executemany(_ADD, rows).rowcount
            return Appended(accepted, len(rows) - accepted)

        return self._commit(work)

    def latest(self, user_ids: Sequence[str], limit: int) -> list[LiveHistory]:
        """See :class:`serving.stores.base.HistoryStore`."""
        with self._reader() as reader:
            return [_history(reader, user_id, limit) for user_id in user_ids]

    def page(self, user_id: str, limit: int, before: Position | None = None) -> list[StoredEvent]:
        """See :class:`serving.stores.base.HistoryStore`."""
        time_, seq = before or (float("inf"), 0)
        with self._reader() as reader:
            rows = reader.execute(_PAGE, (user_id, time_, seq, limit)).fetchall()
        return [StoredEvent(item_id, (at, number), type_) for item_id, at, number, type_ in rows]

    def erase(self, user_id: str) -> int:
        """See :class:`serving.stores.base.HistoryStore`."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(_LOG, ("user", user_id, "erase", None))
            return connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount

        return self._commit(work)

    def record(self, kind: ItemKind | RulesKind, id: str, payload: str | None = None) -> int:
        """See :class:`serving.stores.base.ChangeLog`."""
        row = (subject_of(kind), id, kind, payload)
        return self._commit(lambda connection: int(connection.execute(_LOG, row).lastrowid or 0))

    def changes(self, after: int, limit: int = 500) -> list[Change]:
        """See :class:`serving.stores.base.ChangeLog`."""
        with self._reader() as reader:
            return [Change(*row) for row in reader.execute(_CHANGES, (after, limit))]

    def close(self) -> None:
        """See :class:`serving.stores.base.LiveStore`."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._waiting.put(None)
        self._writer.join()
        self._connection.close()
        with suppress(queue.Empty):
            while True:
                self._readers.get_nowait().close()

    def _commit(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` in the writer's next transaction and wait until that is on disk."""
        done: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise StoreError(f"{self.path}: the store is closed")
            self._waiting.put((work, done))
        with self._translated():
            return done.result()

    def _write(self) -> None:
        """Run the writer thread: one transaction for all waiting calls, then the next."""
        more = True
        while more:
            batch = [self._waiting.get()]
            with suppress(queue.Empty):
                while len(batch) < _AT_ONCE:
                    batch.append(self._waiting.get_nowait())
            more = None not in batch
            self._transact([entry for entry in batch if entry is not None])

    def _transact(self, batch: list[tuple[_Work, Future[Any]]]) -> None:
        if not batch:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [work(self._connection) for work, _ in batch]
            self._connection.execute("COMMIT")
        except Exception as error:  # waiting callers must receive the error
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            for _, done in batch:
                done.set_exception(error)
        else:
            for (_, done), result in zip(batch, results, strict=True):
                done.set_result(result)

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection that no other thread uses; failed ones are not reused."""
        with self._translated():
            if self._closed:
                raise StoreError(f"{self.path}: the store is closed")
            try:
                connection = self._readers.get_nowait()
            except queue.Empty:
                connection = self._connect()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._readers.put(connection)

    def _connect(self) -> sqlite3.Connection:
        # One thread at a time, but not always the same one: hence no check.
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # an erased user's rows are overwritten, not just unlinked
        return connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {' '.join(str(error).split())}") from error


def _history(reader: sqlite3.Connection, user_id: str, limit: int) -> LiveHistory:
    events = reader.execute(_LATEST, (user_id, limit)).fetchall()[::-1]
    (erased,) = reader.execute(_ERASED, (user_id,)).fetchone()
    return LiveHistory.of(events, bool(erased))


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables of a new file; refuse any other file before modifying it."""
    _is_new(connection, path)
    _write_ahead(connection)
    connection.execute("BEGIN IMMEDIATE")  # if several processes open a new file together, one creates the tables
    try:
        if _is_new(connection, path):
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        elif connection.execute("PRAGMA user_version").fetchone() == (1,):
            for statement in filter(str.strip, _UPGRADE.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether the file is empty; otherwise it must be a store that this version can read."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0:
        return True
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise StoreError(f"{path}: a database, but not one of live events")
    if found > FORMAT:
        raise StoreError(f"{path}: format {found} is newer than {FORMAT}, the newest this version reads")
    return False


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to write-ahead logging, the only statement that does not wait for other processes by itself."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
