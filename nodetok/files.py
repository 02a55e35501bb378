"""Graphs and triples from folders of tables (Parquet, CSV, JSON lines); every complaint names file, row and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nodetok.graph import Graph
from setrec.data import columns
from setrec.data.columns import Column
from setrec.data.formats import RawTable, read_raw
from setrec.errors import DataError

FORMATS = (".parquet", ".csv", ".jsonl")
PARTS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
MOST_WORDS = 1_000_000


@dataclass(frozen=True, eq=False)
class GraphData:
    """A graph and what is known of its nodes, in row order: class, part of the split ("" for none), texts, and
    features float32 (V, F)."""

    graph: Graph
    labels: list[str] | None = None
    split: list[str] | None = None
    texts: list[str] | None = None
    features: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class TripleData:
    """Entities, relations and the parts' triples [head row, relation, tail row], int64 (T, 3). ``graph`` is undirected
    and holds the training triples only."""

    ids: list[str]
    texts: list[str] | None
    relations: list[str]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    graph: Graph


def read_graph(folder: Path, *, directed: bool = False) -> GraphData:
    """``edges`` (``source``, ``target``, optional ``weight``) and optional ``nodes`` (``node_id``, optional ``text``,
    ``label``, ``split``, and ``words``: lists of word indices).

    Raises:
        DataError: a file is missing or cannot be used, or an edge ends at no node.
    """
    edges = _table(folder, "edges")
    source, target = (_ids(edges, name) for name in ("source", "target"))
    nodes = _find(folder, "nodes")
    if nodes is None:
        names = pd.unique(pd.concat([source, target], ignore_index=True)).tolist()
    else:
        names = _unique(nodes, "node_id")
    begin, end = _rows(edges, "source", source, names), _rows(edges, "target", target, names)
    weights = None
    if "weight" in edges.table.column_names:
        column = Column(edges.file, "weight", edges.column("weight"))
        weights = columns.numbers(column)
        column.refuse_first(weights < 0, "{} is negative; a length is not")
        column.refuse_first(weights > np.finfo(np.float32).max, "{} is too large for a length")
    texts = None if nodes is None else _optional(nodes, "text")
    graph = Graph.from_arrays(begin, end, len(names), weights=weights, directed=directed, ids=names, texts=texts)
    if nodes is None:
        return GraphData(graph)
    labels = _optional(nodes, "label")
    return GraphData(graph, labels, _parts(nodes), texts, _bag_of_words(nodes))


def read_triples(folder: Path) -> TripleData:
    """``triples`` (``head``, ``relation``, ``tail``, optional ``split``) and optional ``entities`` (``entity_id``,
    optional ``text``).

    Raises:
        DataError: a file is missing or cannot be used, or a triple ends at no entity.
    """
    triples = _table(folder, "triples")
    head, relation, tail = (_ids(triples, name) for name in ("head", "relation", "tail"))
    entities = _find(folder, "entities")
    texts = None
    if entities is None:
        names = pd.unique(pd.concat([head, tail], ignore_index=True)).tolist()
    else:
        names, texts = _unique(entities, "entity_id"), _optional(entities, "text")
    relations = sorted(set(relation))
    kinds = pd.Index(relations).get_indexer(relation)
    ends = (_rows(triples, name, given, names) for name, given in (("head", head), ("tail", tail)))
    rows = np.stack([next(ends), kinds, next(ends)], axis=1).astype(np.int64)
    split = _parts(triples, everywhere=True)
    part = np.full(len(rows), "train") if split is None else np.array(split)
    train, valid, test = (rows[part == name] for name in ("train", "valid", "test"))
    graph = Graph.from_arrays(train[:, 0], train[:, 2], len(names), ids=names, texts=texts)
    return TripleData(names, texts, relations, train, valid, test, graph)


def _find(folder: Path, table: str) -> RawTable | None:
    paths = (folder / f"{table}{suffix}" for suffix in FORMATS)
    path = next((path for path in paths if path.is_file()), None)
    return None if path is None else read_raw(path)


def _table(folder: Path, table: str) -> RawTable:
    found = _find(folder, table)
    if found is None:
        raise DataError(f"no {table}{FORMATS[0]} (or {', '.join(FORMATS[1:])}) there", file=folder)
    return found


def _ids(raw: RawTable, name: str) -> pd.Series:
    return columns.ids(Column(raw.file, name, raw.column(name)))


def _unique(raw: RawTable, name: str) -> list[str]:
    given = _ids(raw, name)
    again = given.duplicated().to_numpy()
    if again.any():
        row = int(again.argmax())
        raise DataError(f"duplicate id {given.iloc[row]!r}", file=raw.file, row=row + 1, column=name)
    return given.tolist()


def _rows(raw: RawTable, name: str, given: pd.Series, names: Sequence[str]) -> np.ndarray:
    rows = pd.Index(names).get_indexer(pd.Index(given))
    if (rows < 0).any():
        row = int((rows < 0).argmax())
        raise DataError(f"no such node {given.iloc[row]!r}", file=raw.file, row=row + 1, column=name)
    return rows


def _optional(raw: RawTable, name: str) -> list[str] | None:
    if name not in raw.table.column_names:
        return None
    return columns.words(Column(raw.file, name, raw.column(name)))


def _parts(raw: RawTable, *, everywhere: bool = False) -> list[str] | None:
    given = _optional(raw, "split")
    if given is None:
        return None
    known = PARTS if everywhere else {**PARTS, "": ""}
    for row, name in enumerate(given):
        if name not in known:
            reason = f"'{name}' is no part of a split ({', '.join(PARTS)})"
            raise DataError(reason, file=raw.file, row=row + 1, column="split")
    return [known[name] for name in given]


def _bag_of_words(raw: RawTable) -> np.ndarray | None:
    if "words" not in raw.table.column_names:
        return None
    column = Column(raw.file, "words", raw.column("words"))
    kind = column.values.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not (pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type)):
        raise column.refuse(f"wrong type: {kind} where lists of word indices are expected")
    counts = pc.fill_null(pc.list_value_length(column.values), 0).to_numpy()
    rows = np.repeat(np.arange(len(counts)), counts)
    words = pc.fill_null(pc.list_flatten(column.values).cast(pa.int64(), safe=False), -1).to_numpy()
    bad = (words < 0) | (words >= MOST_WORDS)
    if bad.any():
        row = int(rows[bad.argmax()])
        raise column.refuse(f"{column.values[row].as_py()} are no word indices (0 .. {MOST_WORDS - 1})", row)
    out = np.zeros((len(counts), int(words.max(initial=-1)) + 1), dtype=np.float32)
    out[rows, words] = 1.0
    return out
