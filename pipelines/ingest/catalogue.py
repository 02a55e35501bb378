"""Reading of a table of items into the engine, and writing of the catalogue in the order of item rows."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data import scans
from pipelines.data.cells import Cell, first_fault, identifier, instant_text
from pipelines.data.engine import DuckDbEngine
from pipelines.data.files import EmptyFileError, File, on_this_machine
from pipelines.ingest import plain_cells
from pipelines.ingest.rejects import Rejects, faulty
from setrec.data.catalog import Catalog
from setrec.data.item_texts import TextColumns, attribute_columns, compose, separator, text_columns
from setrec.data.schema import Schema
from setrec.errors import DataError
from setrec.prefetch import Prefetched

PART = 50_000
"""Rows of a row group of ``items.parquet``."""
_MARKUP = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL | re.IGNORECASE)


def load(engine: DuckDbEngine, schema: Schema, files: list[File], rejects: Rejects) -> TextColumns:
    """Read all files into the table ``raw_items``; make ``items`` (``id``, ``row`` of that table; an item's code is its
    ``rowid``).

    Raises:
        DataError: a file cannot be read, a column is missing or of a wrong type, there are no rows, or too many cannot
            be used.
    """
    words: TextColumns | None = None
    nowhere: dict[str, DataError] | None = None
    for alike in scans.alike(files):
        with (
            nullcontext() if len(files) == 1 else suppress(EmptyFileError),
            on_this_machine(alike[0], engine.scratch) as local,
        ):
            layout = scans.layout(local, alike[1:])
            if words is None:
                attributes = attribute_columns(layout.types, schema)
                parted = tuple(separator(layout.types, schema, name) for name in attributes)
                words = TextColumns(text_columns(layout.types, schema), attributes, parted, schema.strip_html)
                cells = "".join(f", c{at} VARCHAR" for at in range(len(_wanted(words))))
                engine.run(
                    f"CREATE TABLE raw_items (file INTEGER, id VARCHAR, fault STRUCT(c VARCHAR, r VARCHAR){cells})"
                )
            if layout.names or layout.file.format != "jsonl":
                lacking = {name: layout.missing(name) for name in layout.lacking([schema.item_id, *_wanted(words)])}
                if lacking and (layout.file.format != "jsonl" or len(files) == 1):
                    raise next(iter(lacking.values()))
                # Of JSON, one of several files may have no value in a column.
                nowhere = lacking if nowhere is None else {n: e for n, e in nowhere.items() if n in lacking}
            _load_file(engine, schema, layout, words)
    for error in (nowhere or {}).values():
        raise error
    rows = 0 if words is None else engine.one("SELECT count(*) FROM raw_items")[0]
    if not rows or words is None:
        raise DataError("holds no rows", file=rejects.table)
    first = "' (first in row ' || (firsts.met + 1) || ')'" if len(files) == 1 else "''"
    engine.run(
        "UPDATE raw_items SET fault = struct_pack(c := ?, r := 'duplicate item id ''' || raw_items.id || '''' || "
        f"{first}) FROM (SELECT id, min(rowid) AS met FROM raw_items WHERE fault IS NULL GROUP BY id "
        "HAVING count(*) > 1) AS firsts "
        "WHERE raw_items.fault IS NULL AND firsts.id = raw_items.id AND raw_items.rowid > firsts.met",
        schema.item_id,
    )
    rejects.collect(faulty("raw_items"), rows)
    rejects.check()
    engine.run("CREATE TABLE items AS SELECT id, rowid AS row FROM raw_items WHERE fault IS NULL ORDER BY rowid")
    return words


def _wanted(words: TextColumns) -> list[str]:
    return list(dict.fromkeys([*words.text, *words.attributes]))


def _load_file(engine: DuckDbEngine, schema: Schema, layout: scans.Layout, words: TextColumns) -> None:
    columns = _wanted(words)

    def use(relation: str, cells: dict[str, Cell]) -> None:
        value, faults = identifier(cells[schema.item_id], "x_id")
        values = "".join(f", {_as_json(cells[name])}" for name in columns)
        query = f"(SELECT *, {cells[schema.item_id].text} AS x_id FROM {relation})"
        engine.run(f"INSERT INTO raw_items SELECT file, {value}, {first_fault(faults)}{values} FROM {query}")

    scans.scan(engine, layout, list(dict.fromkeys([schema.item_id, *columns])), use)


def _as_json(cell: Cell) -> str:
    """Return the expression of a cell of words, of any type, as JSON."""
    if cell.kind == "json":
        return f"({cell.sql})::VARCHAR"
    if cell.kind == "instant":
        return f"to_json({instant_text(cell.sql, cell.unit)})::VARCHAR"
    return f"to_json({cell.sql if cell.kind in ('whole', 'real', 'text') else cell.text})::VARCHAR"


def place(engine: DuckDbEngine, kept: np.ndarray) -> None:
    """Make the table ``placed`` of the item codes ``kept`` and their order in the catalogue."""
    placed = pa.table({"code": pa.array(kept, pa.int64()), "place": pa.array(np.arange(len(kept)), pa.int64())})
    engine.run("CREATE TABLE placed (code BIGINT, place BIGINT)")
    engine.insert("placed", iter(placed.to_batches(PART)), placed.schema)


def write(engine: DuckDbEngine, words: TextColumns, out: Path, bare: bool) -> int:
    """Write ``items.parquet`` of the placed items (:func:`place`); return how many have no text.

    Reads through a separate cursor, so that another thread may use the engine at the same time.

    A blank title is replaced by the item's id. The text for an encoder consists of the text columns and the attributes,
    ``Toy Story. Release year: 1995. Class: Animation, Comedy``, and never of the id. ``bare``: there is no table of
    items, so ids are titles and there is no text.
    """
    columns = [] if bare else _wanted(words)
    cells = "".join(f", c{at}" for at in range(len(columns)))
    source = "placed JOIN items ON items.rowid = placed.code" + (
        "" if bare else " JOIN raw_items ON raw_items.rowid = items.row"
    )
    query = f"SELECT items.id AS id{cells} FROM {source} ORDER BY placed.place"
    blank = 0
    writer: pq.ParquetWriter | None = None
    try:
        tables = (catalogue_table(batch, words, columns, bare) for batch in _some(engine.batches(query, PART)))
        with Prefetched(tables, 1) as made:  # one batch is written while the next is made
            for table, _ in made:
                writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
                writer.write_table(table)
                blank += int(np.sum(pc.equal(table["text"], "").to_numpy()))
    finally:
        if writer is not None:
            writer.close()
    return blank


def _some(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the non-empty batches, or one empty batch if there are none."""
    for number, batch in enumerate(batches):
        if len(batch) or not number:
            yield batch


def catalogue_table(batch: pa.RecordBatch, words: TextColumns, columns: list[str], bare: bool) -> pa.Table:
    """Return the rows of ``items.parquet`` (:meth:`setrec.data.catalog.Catalog.table`) of a batch of ids and JSON
    cells.

    Rows with only plain cells (:mod:`pipelines.ingest.plain_cells`) are processed column by column, which is twenty
    times faster; others one by one.
    """
    if bare:
        names = batch.column(0).to_pylist()
        return Catalog(names, names, [""] * len(names), {}).table()
    cells = dict(zip(columns, batch.columns[1:], strict=True))
    plain = plain_cells.rows(cells, words, len(batch))
    parts = [_one_by_one(batch.filter(pc.invert(plain)), words, columns)]
    if pc.any(plain).as_py():
        chosen = {name: cell.filter(plain) for name, cell in cells.items()}
        parts.append(plain_cells.table(batch.column(0).filter(plain), chosen, words).cast(parts[0].schema))
    mask = plain.to_numpy(zero_copy_only=False)
    return pa.concat_tables(parts).take(np.argsort(np.argsort(mask, kind="stable")))


def _one_by_one(batch: pa.RecordBatch, words: TextColumns, columns: list[str]) -> pa.Table:
    names = batch.column(0).to_pylist()
    cells = {name: _all_values(name, batch.column(at + 1).to_pylist()) for at, name in enumerate(columns)}
    lines = [[line_of(values, words.strip_html) for values in cells[name]] for name in words.text]
    tags = {
        name: [tags_of(values, parted) for values in cells[name]]
        for name, parted in zip(words.attributes, words.separators, strict=True)
    }
    titles = [title or item for title, item in zip(lines[0], names, strict=True)] if lines else names
    texts = [
        compose([line[row] for line in lines], {name: of[row] for name, of in tags.items()})
        for row in range(len(names))
    ]
    return Catalog(names, titles, texts, tags).table()


_DECODE = json.JSONDecoder(parse_constant=lambda _: None).decode


def _all_values(column: str, cells: list[str | None]) -> list[list[str] | str]:
    try:
        return [_values(cell) for cell in cells]
    except RecursionError:
        raise DataError("holds a list or object that is nested too deeply", column=column) from None


def _values(cell: str | None) -> list[str] | str:
    """Return the text of one cell, or the texts of its list or object; empty if it is missing or NaN."""
    value = None if cell is None else _DECODE(cell)
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return _texts(value) if isinstance(value, dict) else "".join(_texts(value))


def _texts(value: Any) -> list[str]:
    """Return a value as texts, empty if it is missing; for an object ``name: value`` per member; for a list each."""
    if isinstance(value, dict):
        return [f"{name}: {text}" for name, member in value.items() for text in _texts(member)]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)  # as pandas writes whole numbers in columns with missing ones
    return [] if value is None else [str(value).lower() if isinstance(value, bool) else str(value)]


def line_of(values: list[str] | str, strip_html: bool) -> str:
    """Return one line of text, blanks collapsed, lists joined by commas; ``strip_html`` resolves tags and
    references."""
    texts = [values] if isinstance(values, str) else values
    if strip_html:
        texts = [html.unescape(_MARKUP.sub(" ", text)) for text in texts]
    tidy = (" ".join(text.split()) for text in texts)
    return ", ".join(dict.fromkeys(text for text in tidy if text))


def tags_of(values: list[str] | str, parted: str | None) -> list[str]:
    """Return the distinct non-blank values: of a list, of one string split at ``parted``, or one value."""
    texts = values if isinstance(values, list) else values.split(parted) if parted else [values]
    tidy = (" ".join(text.split()) for text in texts)
    return list(dict.fromkeys(text for text in tidy if text))
