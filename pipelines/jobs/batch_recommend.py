"""The best items for every user of a table, however large: a streaming Ray Data job over the engine of serving.

The input is a Parquet file, or all of a folder, local or by URI, with a row per request: ``user_id`` and, where there
is one, ``history``, a list of item ids, oldest first. Without a history it is the bundle's own that counts. The output
is a folder:

- ``answers/part-*.parquet``: ``user_id``, ``item_ids`` and ``scores`` (lists, best first), ``model_version``; one row a
  user, as a key-value store wants them, in the order of the input
- ``rejected/part-*.parquet``: rows without an answer: ``user_id``, ``history``, ``reason`` and a ``detail``
- ``batch.json``: what was asked, how many were answered, how many rejected by reason, and ``complete``

A local folder is there as a whole or not at all. An object store knows no renaming of folders: there ``batch.json`` is
what says ``complete``, and is written last.

Answers are the engine's, the endpoint's that is, but for the popular items it gives to users nobody knows: these are
rejected. Scores may differ from those of single requests in their sixth digit, because a model's float32 sums depend
on the batch.

Actors share nothing, so the rate grows with the cores. Memory: an opened bundle for each actor, and 20,000 users at a
time.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.common import storage
from pipelines.common.cluster import quiet_data, ray_session
from pipelines.common.failures import told
from pipelines.common.progress import Bar, bar
from pipelines.data import parquet
from pipelines.jobs.batch_actor import BatchRecommender, Piece
from serving.bundle.manifest import verify
from setrec.atomic import atomic_directory
from setrec.errors import ConfigError, DataError

RECORD = "batch.json"
FORMAT = 1
ROWS_PER_FILE = 20_000
"""Most users that go to an actor, and into a file, together; they are done again together where an actor dies."""


@dataclass(frozen=True)
class BatchRequest:
    """``users``: the table's file, folder or URI; ``out``: the folder or URI to leave. ``actors``: one a core, or a
    cluster's cores but one, where ``None``; each has one thread."""

    bundle: Path
    users: str
    out: str
    k: int = 10
    exclude_history: bool = True
    actors: int | None = None
    address: str | None = None


def recommend_batch(asked: BatchRequest) -> dict[str, Any]:
    """Answer every row and write the folder; returns what ``batch.json`` holds.

    The same request again leaves the same answers in place of the earlier ones.

    Raises:
        BundleError: the bundle cannot be opened.
        DataError: the input is missing or no such table, or something else lies at ``out``.
        ConfigError: the cluster is too small for the actors, or the job failed.
    """
    _refuse_foreign(asked.out)
    version = verify(asked.bundle).model_version
    pieces = _pieces(asked.users)
    rows = sum(piece.rows for piece in pieces)
    began = time.perf_counter()
    with bar("Recommend") as progress, _placed(asked.out) as folder:
        with ray_session(asked.address, None if asked.address else (asked.actors or os.cpu_count() or 1) + 1):
            rejected = _stream(asked, pieces, folder, progress)
        seconds = time.perf_counter() - began
        answered = rows - rejected.total()
        record = {
            "format": FORMAT, "complete": True, "model_version": version, "bundle": str(asked.bundle),
            "users": storage.shown(asked.users), "k": asked.k, "exclude_history": asked.exclude_history,
            "rows": rows, "answered": answered, "rejected": dict(sorted(rejected.items())),
            "seconds": round(seconds, 2),
        }  # fmt: skip
        _write_record(folder, record)
        progress.update(1, 1, f"{answered} answered, {rejected.total()} rejected, {rows / seconds:.0f} a second")
    return record


def _pieces(users: str) -> list[Piece]:
    """What there is to do, from every file's footer.

    Raises:
        DataError: no Parquet file is there, or one has no such columns; the message names it.
    """
    system, _ = storage.filesystem(users)
    paths = [info.path for info in storage.files(users) if info.path.endswith((".parquet", ".pq"))]
    if not paths:
        raise DataError("no Parquet file is there", file=storage.shown(users))
    found: list[Piece] = []
    for path in paths:
        try:
            with system.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
                _check_columns(file.schema_arrow, path)
                groups = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            raise DataError("not a readable Parquet file (truncated or damaged)", file=path) from error
        for group, rows in enumerate(groups):
            starts = range(0, rows, ROWS_PER_FILE)
            found += [
                Piece(len(found) + i, path, group, start, min(ROWS_PER_FILE, rows - start))
                for i, start in enumerate(starts)
            ]
    return found


def _check_columns(schema: pa.Schema, path: str) -> None:
    if "user_id" not in schema.names:
        raise DataError("missing column", file=path, column="user_id")
    kind = schema.field("user_id").type
    if parquet.plan(kind).kind not in ("text", "whole"):
        raise DataError(f"expected strings or integers, not {kind}", file=path, column="user_id")
    if "history" not in schema.names:
        return
    kind = schema.field("history").type
    if not parquet.is_list(kind) or parquet.plan(kind.value_type).kind not in ("text", "whole", "real"):
        raise DataError(f"expected a list of item ids, not {kind}", file=path, column="history")


def _stream(asked: BatchRequest, pieces: list[Piece], folder: str, progress: Bar) -> Counter[str]:
    """Have the actors write all files; returns how many rows were rejected, by reason."""
    import ray

    actors, rejected = min(_actors(asked), len(pieces)), Counter[str]()
    done, total = 0, sum(piece.rows for piece in pieces)
    if not pieces:
        return rejected
    quiet_data()
    given = (str(asked.bundle.resolve()), asked.users, folder, asked.k, asked.exclude_history)
    table = ray.data.from_items([asdict(piece) for piece in pieces], override_num_blocks=len(pieces))
    try:
        work = table.map_batches(
            BatchRecommender, fn_constructor_args=given, compute=ray.data.ActorPoolStrategy(size=actors), num_cpus=1
        )
        for piece in work.iter_rows():
            done += piece["rows"]
            rejected.update(json.loads(piece["rejected"]))
            progress.update(done, total, f"{actors} actors")
    except Exception as error:
        raise told(error, "the batch job") from error
    return rejected


def _actors(asked: BatchRequest) -> int:
    """How many actors; reading and writing need a core beside them, or the job would wait for ever."""
    import ray

    room = int(ray.cluster_resources().get("CPU", 0)) - 1
    actors = asked.actors or max(1, room)
    if actors > room:
        raise ConfigError(f"{actors} actors and a core beside them do not fit the cluster's {room + 1} cores")
    return actors


def _refuse_foreign(out: str) -> None:
    """A mistyped ``out`` must not cost somebody a folder."""
    where = storage.shown(out)
    if not storage.exists(out):
        return
    if not storage.is_folder(out):
        raise DataError("exists and is no folder of recommendations; it will not be replaced", file=where)
    system, path = storage.filesystem(out)
    from pyarrow import fs

    if system.get_file_info(fs.FileSelector(path)) and not storage.exists(storage.join(out, RECORD)):
        raise DataError("exists and is no folder of recommendations; it will not be replaced", file=where)


@contextmanager
def _placed(out: str) -> Iterator[str]:
    """Where to write: a temporary folder that becomes ``out``, or in an object store ``out``, marked incomplete."""
    if not storage.is_uri(out):
        with atomic_directory(os.path.abspath(out)) as folder:
            yield str(folder)
        return
    _write_record(out, {"format": FORMAT, "complete": False})
    for name in ("answers", "rejected"):
        system, path = storage.filesystem(storage.join(out, name))
        system.delete_dir_contents(path, missing_dir_ok=True)
    yield out


def _write_record(folder: str, record: dict[str, Any]) -> None:
    with storage.atomic_stream(storage.join(folder, RECORD)) as stream:
        stream.write((json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
