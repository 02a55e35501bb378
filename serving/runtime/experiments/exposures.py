"""Exposure log: answers and feedback as Parquet files, for experiments and off-policy estimates.

``answers-*.parquet`` contains a row for every item of every answer, ``feedback-*.parquet`` one for every impression and
click. Rows are collected in memory and written every few seconds, each file atomically, so a killed process loses the
latest rows. No row contains a user id: the answer's id connects the two kinds.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from serving.engine.requests import Answer
from serving.telemetry import logs, metrics
from setrec.atomic import atomic_file

ANSWERS = pa.schema(
    {
        "answer_id": pa.string(),
        "time": pa.float64(),  # seconds since 1970, UTC
        "model_version": pa.string(),
        "experiment": pa.string(),
        "arm": pa.string(),
        "propensity": pa.float64(),  # of this arm, and so of this list
        "position": pa.int32(),  # from 1
        "item_id": pa.string(),
        "score": pa.float64(),
    }
)
FEEDBACK = pa.schema({"answer_id": pa.string(), "time": pa.float64(), "event": pa.string(), "item_id": pa.string()})
_FLUSH_SECONDS = 5.0
_MOST_ROWS = 200_000


@dataclass(frozen=True)
class Arm:
    """The experiment and arm of an answer, and its probability."""

    experiment: str = ""
    name: str = ""
    propensity: float = 1.0


@dataclass(frozen=True)
class Feedback:
    """Feedback on an item of an answer."""

    event: Literal["impression", "click"]
    item_id: str


class ExposureLog:
    """Collects rows and writes them in a thread, until it is closed."""

    def __init__(self, folder: Path, seconds: float = _FLUSH_SECONDS) -> None:
        """``folder`` is created if missing. Raises: OSError: it cannot be created."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._seconds = folder, seconds
        self._rows: dict[str, list[tuple[Any, ...]]] = {"answers": [], "feedback": []}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="exposures", daemon=True)
        self._thread.start()

    def log_answer(self, answer_id: str, answer: Answer, arm: Arm) -> None:
        """Log an answer."""
        now = time.time()
        head = (answer_id, now, answer.model_version, arm.experiment, arm.name, arm.propensity)
        self._add("answers", [(*head, n, item.item_id, item.score) for n, item in enumerate(answer.items, 1)])

    def log_feedback(self, answer_id: str, events: Sequence[Feedback]) -> None:
        """Log feedback on an answer."""
        now = time.time()
        self._add("feedback", [(answer_id, now, event.event, event.item_id) for event in events])

    def flush(self) -> None:
        """Write the collected rows."""
        for kind, schema in (("answers", ANSWERS), ("feedback", FEEDBACK)):
            with self._lock:
                rows, self._rows[kind] = self._rows[kind], []
            if rows:
                table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)
                name = f"{kind}-{time.time_ns()}-{secrets.token_hex(4)}.parquet"
                with atomic_file(self._folder / name) as file:
                    pq.write_table(table, file)

    def close(self) -> None:
        """Write the remaining rows and stop the thread."""
        self._stop.set()
        self._thread.join()
        self._try_to_flush()

    def _add(self, kind: str, rows: list[tuple[Any, ...]]) -> None:
        with self._lock:
            kept = len(self._rows[kind]) + len(rows) <= _MOST_ROWS
            if kept:
                self._rows[kind] += rows
        metrics.EXPOSURES.labels(kind if kept else "dropped").inc(len(rows))

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._try_to_flush()

    def _try_to_flush(self) -> None:
        try:
            self.flush()
        except Exception:  # the writer thread must not end
            logs.failure("exposures could not be written")
