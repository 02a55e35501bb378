"""Items too many for one process: their ids as a table that all tasks share, their texts in the order of item rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.blocks import load_arrays, part_of, parted, save_arrays
from pipelines.data_settings import DataSettings
from pipelines.item_table import ItemTable
from pipelines.pieces import Piece, Source
from pipelines.rejects import Rejected
from setrec.catalog import Catalog
from setrec.columns import Faults
from setrec.errors import DataError
from setrec.tables import item_ids, items_of

PART = 50_000
"""Items that are put in order together; also the rows of a row group of ``items.parquet``."""


@dataclass(frozen=True)
class Items:
    """What tasks over the input's items need."""

    data: DataSettings
    source: Source
    scratch: str

    def file(self, kind: str, piece: int) -> str:
        """Where a piece's file of a ``kind`` lies."""
        return storage.join(self.scratch, f"{kind}-{piece:06d}")


def read_ids(job: Items, piece: Piece) -> dict[str, Any]:
    """Keep the ids of a piece with the rows where they stand; returns ``rejected`` and ``first`` of them."""
    rejected, ids, rows = Rejected(), [], []
    for raw, before in job.source.blocks(piece, [job.data.columns.item_id], job.data.streaming.block_rows):
        faults: Faults = {}
        found = item_ids(raw, job.data.columns, faults)
        rejected.add_faults(faults, str(raw.file), before)
        good = np.delete(np.arange(len(found)), list(faults))
        ids.append(found.iloc[good])
        rows.append(good + piece.first_row + before)
    rejected.save(job.file("badids", piece.number))
    save_arrays(
        job.file("ids", piece.number),
        {"item": pa.array(pd.concat(ids), pa.large_string()), "row": np.concatenate(rows)},
    )
    return {"rejected": len(rejected), "first": rejected.first()}


def table_of_ids(files: Sequence[str], repeats: str) -> tuple[ItemTable, dict[int, str]]:
    """The table of the ids in ``files``; and the rows that repeat an earlier id, where ``repeats`` is ``report``.

    With ``skip`` they are expected, as where ids are those met in interactions, and none is returned.
    """
    held: list[pd.DataFrame] = []
    settled = waiting = 0
    for where in files:
        held.append(pd.DataFrame(load_arrays(where)))
        waiting += len(held[-1])
        if repeats == "skip" and waiting > max(settled, 1_000_000):
            held = [pd.concat(held).drop_duplicates("item")]
            settled, waiting = len(held[0]), 0
    found = pd.concat(held, ignore_index=True)
    table, again = ItemTable.of(found["item"], found["row"].to_numpy())
    repeated = found.iloc[again] if repeats == "report" else found[:0]
    return table, dict(zip(repeated["row"].tolist(), repeated["item"].tolist(), strict=True))


def place(job: Items, piece: Piece, items: ItemTable, row_of: np.ndarray) -> int:
    """Write the kept items of a piece, a batch for each :data:`PART` rows of the catalogue; returns the piece.

    ``row_of`` int32 (I,): the catalogue's row of each item code, -1 where it is left out.
    """
    parts = max(1, -(-int(row_of.max(initial=-1) + 1) // PART))
    blocks = _catalogs(job, piece, items, row_of)
    table, rows = next(blocks)
    with parted(job.file("placed", piece.number), table.schema, parts) as append:
        append(table, rows // PART)
        for table, rows in blocks:
            append(table, rows // PART)
    return piece.number


def _catalogs(job: Items, piece: Piece, items: ItemTable, row_of: np.ndarray) -> Iterator[tuple[pa.Table, np.ndarray]]:
    for raw, before in job.source.blocks(piece, None, min(PART, job.data.streaming.block_rows)):
        faults: Faults = {}
        catalog = items_of(raw, job.data.columns, faults)
        stood = np.delete(np.arange(raw.table.num_rows), list(faults)) + piece.first_row + before
        codes = items.codes_at(stood)
        rows = np.where(codes >= 0, row_of[codes], -1)
        kept = np.flatnonzero(rows >= 0)
        table = catalog.table().take(pa.array(kept))
        yield table.append_column("row", pa.array(rows[kept], pa.int64())), rows[kept].astype(np.int64)


def write_catalog(files: Sequence[str], count: int, out: str) -> int:
    """Write ``items.parquet`` of ``count`` items from the files of :func:`place`; returns how many have no text."""
    parts = max(1, -(-count // PART))
    parted_tables = (
        pa.Table.from_batches([batch for _, _, batch in part_of(files, part, parts)]).sort_by("row").drop(["row"])
        for part in range(parts)
    )
    return _written(parted_tables, count, out)


def write_bare_catalog(items: ItemTable, kept: np.ndarray, out: str) -> int:
    """Write ``items.parquet`` of the codes ``kept``, titled by their ids and without text; returns how many."""
    chunks = (kept[start : start + PART] for start in range(0, len(kept), PART))
    named = (items.ids.take(pa.array(chunk)).to_pylist() for chunk in chunks)
    return _written((Catalog(names, names, [""] * len(names), {}).table() for names in named), len(kept), out)


def _written(tables: Iterator[pa.Table], count: int, out: str) -> int:
    first = next(tables)
    blank, written = _without_text(first), len(first)
    with pq.ParquetWriter(out, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
            blank, written = blank + _without_text(table), written + len(table)
    if written != count:
        raise DataError(f"the items changed while they were read: {count} were found first, then {written}")
    return blank


def _without_text(table: pa.Table) -> int:
    return sum(not text for text in table["text"].to_pylist())
