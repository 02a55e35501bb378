"""The data directory, format 2, which ingest writes and every later step reads.

- ``items.parquet``: the catalogue, rows in the order of item rows
- ``histories/part-00000.parquet`` ...: histories, whole users, each user in one shard
- ``rejected/part-00000.parquet`` ...: rows that could not be used, if any were allowed
- ``data.json``: counts, settings and fingerprints of the inputs
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from setrec.data.catalog import Catalog, Histories
from setrec.errors import DataError
from setrec.ragged import Ragged

FORMAT = 2
SHARD_ROWS = 1_000_000
"""Target number of interactions of a shard; a shard ends with the user that reaches it."""
_NAMES = {"items.parquet", "histories", "rejected", "data.json", "histories.parquet"}


def load(out: str | Path) -> tuple[Catalog, Histories]:
    """Return the catalogue and the histories of a data directory, all shards in order; several shards are not held in
    memory (:meth:`Histories.load`).

    Raises:
        DataError: a file is missing or damaged, or the two do not match.
    """
    catalog = Catalog.load(Path(out) / "items.parquet")
    return catalog, Histories.load(*history_shards(out), items=len(catalog))


def catalog_size(out: str | Path) -> int:
    """Return the number of items of a data directory."""
    return int(pq.ParquetFile(Path(out) / "items.parquet").metadata.num_rows)


def history_shards(out: str | Path) -> list[str]:
    """Return the paths of the shards in order. A directory of format 1 has one, ``histories.parquet``.

    Raises:
        DataError: there are none; the message names the command that makes them.
    """
    out = Path(out)
    shards = sorted(str(path) for path in (out / "histories").glob("part-*.parquet"))
    if not shards and (out / "histories.parquet").is_file():
        return [str(out / "histories.parquet")]
    if not shards:
        raise DataError("holds no histories: run `setrec prepare` again", file=out)
    return shards


def shard_name(number: int) -> str:
    """Return the name of a shard or of a part of the rejected rows."""
    return f"part-{number:05d}.parquet"


def write_histories(folder: Path, parts: Iterable[Histories], rows: int = SHARD_ROWS) -> None:
    """Write the users of all ``parts`` as ``folder/part-*.parquet``; a shard ends with the user whose interactions
    reach ``rows``, independent of the ends of parts."""
    folder.mkdir(exist_ok=True)
    number, held, size = 0, list[Histories](), 0

    def save() -> None:
        nonlocal number, held, size
        _joined(held).save(folder / shard_name(number))
        number, held, size = number + 1, [], 0

    for part in parts:
        start, offsets = 0, part.items.offsets
        while start < len(part):
            # The first user that fills the shard, or the last one of the part.
            end = min(int(np.searchsorted(offsets, offsets[start] + rows - size)), len(part))
            held.append(part.part(start, end))
            size += int(offsets[end] - offsets[start])
            start = end
            if size >= rows:
                save()
    if held or not number:
        save()


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write ``data.json``."""
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (folder / "data.json").write_text(text, encoding="utf-8")


def refuse_foreign(out: Path) -> None:
    """Refuse an ``out`` that is not a data directory, so that a mistyped path does not delete a folder.

    Raises:
        DataError: ``out`` exists and is not a data directory.
    """
    if out.exists() and (not out.is_dir() or {entry.name for entry in out.iterdir()} - _NAMES):
        raise DataError("exists and is not a data directory; it will not be replaced", file=out)


def _joined(parts: list[Histories]) -> Histories:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Histories([], Ragged.of([]), np.empty(0, dtype=np.int8))
    users = [user for part in parts for user in part.user_ids]
    items = Ragged.joined([part.items for part in parts])
    return Histories(users, items, np.concatenate([part.splits for part in parts]))
