"""The best items for every user of a table, however large: a streaming Ray Data job over the engine of serving.

The input is a Parquet file, or all of a folder, local or by URI, with a row per request: ``user_id`` and, optionally,
``history``, a list of item ids, oldest first. If the history is missing or empty, that of the bundle is used. The
output is a folder:

- ``answers/part-*.parquet``: ``user_id``, ``item_ids`` and ``scores`` (lists, best first), ``model_version``; one row
per user, as for a key-value store, in the order of the input; ``fallback``: why popular items were returned
- ``_rejected/part-*.parquet``: rows without an answer: ``user_id``, ``history``, ``reason`` and a ``detail``
- ``_batch.json``: the request, the number of answers, of rejected rows by reason, and ``complete``

For readers of Parquet the folder is a data set of the answers, because they skip names with an underscore.

A local folder is written completely or not at all. An object store cannot rename folders: there ``complete`` in
``_batch.json``, which is written last, marks a complete folder.

Answers are those of the endpoint's engine. Scores may differ from those of single requests in their sixth digit,
because a model's float32 sums depend on the batch.

Actors share nothing, so the rate grows with the cores. Memory: an opened bundle per actor, and 20,000 users at a time.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.common import storage
from pipelines.common.cluster import quiet_data, ray_session
from pipelines.common.failures import readable_error
from pipelines.common.progress import Bar, bar
from pipelines.data import parquet
from pipelines.jobs.batch_actor import ANSWERS_FOLDER, BATCH, REJECTED_FOLDER, BatchRecommender, Piece
from pipelines.jobs.recommend import AnswerOptions
from serving.bundle.manifest import verify
from setrec.atomic import atomic_directory
from setrec.errors import ConfigError, DataError

RECORD = "_batch.json"
FORMAT = 2
ROWS_PER_FILE = 20_000
"""Maximum number of users of a piece, which goes to one actor and one file and is repeated if the actor dies."""
_PIECES = 4
"""Minimum number of pieces per actor if there are enough users, so that all end at about the same time."""


@dataclass(frozen=True)
class BatchRequest:
    """``users``: the table's file, folder or URI; ``out``: the output folder or URI. ``actors``: if ``None``, one per
    core, or a cluster's cores but one; each has one thread. ``rejected_share``: share of rows that may have no
    answer."""

    bundle: Path
    users: str
    out: str
    options: AnswerOptions = field(default_factory=AnswerOptions)
    actors: int | None = None
    address: str | None = None
    rejected_share: float = 0.01


def recommend_batch(asked: BatchRequest) -> dict[str, Any]:
    """Answer every row and write the folder; return the content of ``batch.json``.

    Repeating a request replaces the earlier answers by the same ones.

    Raises:
        BundleError: the bundle cannot be opened.
        DataError: the input is missing or not such a table, ``out`` is another folder, or too many rows have no answer;
            ``out`` is then unchanged.
        ConfigError: the filter is invalid, the cluster is too small for the actors, or the job failed.
    """
    asked.options.parsed_filter()
    _refuse_foreign(asked.out)
    _refuse_inside(asked.users, asked.out)
    version = verify(asked.bundle).model_version
    pieces = _pieces(asked.users, asked.actors or os.cpu_count() or 1)
    rows = sum(piece.rows for piece in pieces)
    began = time.perf_counter()
    with bar("Recommend") as progress, _placed(asked.out) as folder:
        with ray_session(asked.address, None if asked.address else (asked.actors or os.cpu_count() or 1) + 1):
            rejected, example = _stream(asked, pieces, folder, progress)
        seconds = time.perf_counter() - began
        answered = rows - rejected.total()
        if rejected.total() > asked.rejected_share * rows:
            raise DataError(
                f"{rejected.total()} of {rows} rows have no answer ({_by_reason(rejected)}; one of them: {example}), a "
                f"larger share than {asked.rejected_share:g}, which --rejected-share sets",
                file=storage.shown(asked.users),
            )
        record = {
            "format": FORMAT, "complete": True, "model_version": version, "bundle": str(asked.bundle),
            "users": storage.shown(asked.users), **asdict(asked.options),
            "rows": rows, "answered": answered, "rejected": dict(sorted(rejected.items())),
            "seconds": round(seconds, 2),
        }  # fmt: skip
        _write_record(folder, record)
        progress.update(1, 1, f"{answered} answered, {rejected.total()} rejected, {rows / seconds:.0f} a second")
    return record


def _by_reason(rejected: Counter[str]) -> str:
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in rejected.most_common())


def _pieces(users: str, actors: int = 1) -> list[Piece]:
    """Return the rows of every file, from its footer, in pieces small enough for all ``actors`` to have some.

    Raises:
        DataError: there is no Parquet file, or one does not have the columns; the message names it.
    """
    system, _ = storage.filesystem(users)
    paths = [info.path for info in storage.files(users) if info.path.endswith((".parquet", ".pq"))]
    if not paths:
        raise DataError("no Parquet file is there", file=storage.shown(users))
    groups: list[tuple[str, int, int]] = []
    for path in paths:
        try:
            with system.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
                _check_columns(file.schema_arrow, path)
                metadata = file.metadata
                groups += [(path, g, metadata.row_group(g).num_rows) for g in range(metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            raise DataError("not a readable Parquet file (truncated or damaged)", file=path) from error
    total = sum(rows for _, _, rows in groups)
    size = min(ROWS_PER_FILE, max(BATCH, -(-total // (_PIECES * actors))))
    every = [(path, group, start, min(size, rows - start)) for path, group, rows in groups
             for start in range(0, rows, size)]  # fmt: skip
    return [Piece(number, *piece) for number, piece in enumerate(every)]


def _check_columns(schema: pa.Schema, path: str) -> None:
    if "user_id" not in schema.names:
        raise DataError("missing column", file=path, column="user_id")
    for name in ("user_id", "history"):
        if schema.names.count(name) > 1:
            raise DataError("the column name repeats", file=path, column=name)
    kind = schema.field("user_id").type
    if not parquet.holds_ids(kind):
        raise DataError(f"expected strings or integers, not {kind}", file=path, column="user_id")
    if "history" not in schema.names:
        return
    kind = schema.field("history").type
    if not pa.types.is_null(kind) and not (parquet.is_list(kind) and parquet.holds_ids(kind.value_type)):
        raise DataError(f"expected a list of item ids, not {kind}", file=path, column="history")


def _stream(asked: BatchRequest, pieces: list[Piece], folder: str, progress: Bar) -> tuple[Counter[str], str]:
    """Let the actors write all files; return how many rows were rejected, by reason, and the detail of one."""
    import ray

    actors, rejected, example = min(_actors(asked), len(pieces)), Counter[str](), ""
    done, total = 0, sum(piece.rows for piece in pieces)
    if not pieces:
        return rejected, example
    quiet_data()
    given = (str(asked.bundle.resolve()), asked.users, folder, asked.options)
    table = ray.data.from_items([asdict(piece) for piece in pieces], override_num_blocks=len(pieces))
    try:
        work = table.map_batches(
            BatchRecommender, fn_constructor_args=given, compute=ray.data.ActorPoolStrategy(size=actors), num_cpus=1
        )
        for piece in work.iter_rows():
            done += piece["rows"]
            rejected.update(json.loads(piece["rejected"]))
            example = example or piece["example"]
            progress.update(done, total, f"{actors} actors")
    except Exception as error:
        raise readable_error(error, "the batch job") from error
    return rejected, example


def _actors(asked: BatchRequest) -> int:
    """Return the number of actors; reading and writing need an additional core, or the job would wait forever."""
    import ray

    room = int(ray.cluster_resources().get("CPU", 0)) - 1
    actors = asked.actors or max(1, room)
    if actors > room:
        raise ConfigError(f"{actors} actors and one more core do not fit the cluster's {room + 1} cores")
    return actors


def _refuse_inside(users: str, out: str) -> None:
    """Refuse an ``out`` inside the table, whose answers the next job would take for users, or around it, which would
    replace the table."""
    (system, table), (other, folder) = storage.filesystem(users), storage.filesystem(out)
    if system.type_name == other.type_name:
        table, folder = (f"{path.rstrip('/')}/" for path in (os.path.realpath(table), os.path.realpath(folder)))
        if table.startswith(folder) or folder.startswith(table):
            raise DataError(f"must be apart from the table of users, {storage.shown(users)}", file=storage.shown(out))


def _refuse_foreign(out: str) -> None:
    """Refuse an ``out`` that is another folder, so that a mistyped path does not delete it."""
    where = storage.shown(out)
    if not storage.exists(out):
        return
    if not storage.is_folder(out):
        raise DataError("exists and is not a folder of recommendations; it will not be replaced", file=where)
    system, path = storage.filesystem(out)
    from pyarrow import fs

    ours = any(storage.exists(storage.join(out, name)) for name in (RECORD, "batch.json"))  # the latter: format 1
    if system.get_file_info(fs.FileSelector(path)) and not ours:
        raise DataError("exists and is not a folder of recommendations; it will not be replaced", file=where)


@contextmanager
def _placed(out: str) -> Iterator[str]:
    """Yield the folder to write: a temporary one that becomes ``out``, or in an object store ``out``, marked
    incomplete."""
    if not storage.is_uri(out):
        with atomic_directory(os.path.abspath(out)) as folder:
            yield str(folder)
        return
    _write_record(out, {"format": FORMAT, "complete": False})
    for name in (ANSWERS_FOLDER, REJECTED_FOLDER):
        system, path = storage.filesystem(storage.join(out, name))
        system.delete_dir_contents(path, missing_dir_ok=True)
    yield out


def _write_record(folder: str, record: dict[str, Any]) -> None:
    with storage.atomic_stream(storage.join(folder, RECORD)) as stream:
        stream.write((json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
