"""The actor of batch recommendations: reads rows of a table, writes a file of answers and one of rejected rows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.common import storage
from pipelines.data import parquet
from pipelines.jobs.recommend import AnswerOptions
from serving.bundle.reader import Bundle
from serving.engine.engine import Answer, Engine, Request
from setrec.errors import SetRecError, UnknownItemError

BATCH = 256
"""Number of users that an engine answers at a time."""
ANSWERS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("model_version", pa.string()),
        ("fallback", pa.string()),
    ]
)
REJECTED = pa.schema(
    [("user_id", pa.string()), ("history", pa.list_(pa.string())), ("reason", pa.string()), ("detail", pa.string())]
)
ANSWERS_FOLDER, REJECTED_FOLDER = "answers", "_rejected"
"""Readers of Parquet data sets skip names that begin with an underscore."""
_REASONS = {
    "new_user": ("unknown_user", "the bundle does not contain the user"),
    "empty_history": ("no_history", "the bundle holds no history of the user"),
    "unknown_items": ("no_history", "the bundle holds no item of the user's history"),
}


@dataclass(frozen=True)
class Piece:
    """Some rows of a row group of a file; pieces are numbered in the order of the table."""

    number: int
    path: str
    group: int
    start: int
    rows: int


class BatchRecommender:
    """An engine that answers pieces of the table at ``users`` and writes files below ``folder``."""

    def __init__(self, bundle: str, users: str, folder: str, options: AnswerOptions) -> None:
        torch.set_num_threads(1)
        self.engine = Engine(Bundle.open(bundle), max_k=options.k)
        self.users, self.folder, self.options, self.filter = users, folder, options, options.parsed_filter()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Process pieces, a column for each of their fields; return the number of rows of each, how many were rejected
        by reason, as JSON, and the first one's detail.

        Repeating a piece writes the same files under the same names.
        """
        report: dict[str, list[Any]] = {"rows": [], "rejected": [], "example": []}
        for number, path, group, start, rows in zip(*(batch[field.name] for field in fields(Piece)), strict=True):
            piece = Piece(int(number), str(path), int(group), int(start), int(rows))
            answers, rejected = self.answer(self._read(piece))
            self._write(answers, ANSWERS_FOLDER, piece.number)
            self._write(rejected, REJECTED_FOLDER, piece.number)
            report["rows"].append(piece.rows)
            report["rejected"].append(json.dumps(Counter(rejected["reason"].to_pylist())))
            report["example"].append(rejected["detail"][0].as_py() if len(rejected) else "")
        return report

    def answer(self, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return answers and rejected rows of a table with ``user_id`` and optional ``history``, in its order."""
        users = parquet.ids(rows["user_id"])
        given = parquet.lists_of_ids(rows["history"]) if "history" in rows.column_names else []
        every = list(zip(users, given or [None] * len(users), strict=True))
        answers: dict[str, list[Any]] = {name: [] for name in ANSWERS.names}
        rejected: dict[str, list[Any]] = {name: [] for name in REJECTED.names}
        for start in range(0, len(every), BATCH):
            batch = every[start : start + BATCH]
            for (user, history), found in zip(batch, self._found(batch), strict=True):
                if isinstance(found, Answer):
                    items = [i.item_id for i in found.items], [i.score for i in found.items]
                    _append(answers, user, *items, found.model_version, found.fallback and found.fallback.reason)
                else:
                    _append(rejected, user, history, *found)
        return pa.table(answers, schema=ANSWERS), pa.table(rejected, schema=REJECTED)

    def _found(self, batch: list[tuple[str | None, list[str | None] | None]]) -> list[Answer | tuple[str, str]]:
        """Return the answer to each row, or the reason and detail why there is none."""
        found: list[Any] = [_unusable(*row, popular=self.options.popular) for row in batch]
        asked = [i for i, unusable in enumerate(found) if unusable is None]
        for i, answer in zip(asked, self.engine.recommend([self._request(*batch[i]) for i in asked]), strict=True):
            found[i] = self._judged(answer)
        return found

    def _request(self, user: Any, history: Any) -> Request:
        known: dict[str, Any] = {"user_id": user} if not history else {"history": tuple(history)}
        return Request(
            **known, k=self.engine.max_k, exclude_history=self.options.exclude_history, filter=self.filter,
            unknown_items=self.options.unknown_items,
        )  # fmt: skip

    def _judged(self, answer: Answer | SetRecError) -> Answer | tuple[str, str]:
        """Return the answer, or the reason and detail if there is none."""
        if isinstance(answer, UnknownItemError):
            return "unknown_item", str(answer)
        if isinstance(answer, SetRecError):
            return "refused", str(answer)
        return answer if answer.fallback is None or self.options.popular else _REASONS[answer.fallback.reason]

    def _read(self, piece: Piece) -> pa.Table:
        system, _ = storage.filesystem(self.users)
        with system.open_input_file(piece.path) as stream, pq.ParquetFile(stream) as file:
            names = [name for name in ("user_id", "history") if name in file.schema_arrow.names]
            return file.read_row_group(piece.group, columns=names).slice(piece.start, piece.rows)

    def _write(self, table: pa.Table, kind: str, number: int) -> None:
        if len(table):
            with storage.atomic_stream(storage.join(self.folder, kind, f"part-{number:05d}.parquet")) as stream:
                pq.write_table(table, stream, compression="zstd")


def _append(columns: dict[str, list[Any]], *values: Any) -> None:
    for column, value in zip(columns.values(), values, strict=True):
        column.append(value)


def _unusable(user: str | None, history: list[str | None] | None, *, popular: bool) -> tuple[str, str] | None:
    """Return reason and detail for a row that is not a valid request."""
    if user is None:
        return "no_user_id", "the row has no user_id"
    if history is not None and None in history:
        return "no_item_id", "the history holds a null"
    if history is not None and not history and not popular:
        return "no_history", "the history is empty"
    return None
