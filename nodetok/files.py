"""Readers of graphs and triples from folders of tables (Parquet, CSV, JSON lines); errors name file, row and column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nodetok.graph import Graph
from nodetok.pyg import as_array, as_texts
from nodetok.settings import GraphDataSettings
from nodetok.splits import PART_NAMES, PARTS, split_by_class, split_triples
from setrec.data import columns
from setrec.data.columns import Column
from setrec.data.formats import RawTable, read_raw
from setrec.errors import DataError

FORMATS = (".parquet", ".csv", ".jsonl")
MOST_WORDS = 1_000_000
FRACTION = re.compile(r"[-+]?\d*\.\d+(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class GraphData:
    """A graph with the labels ("" for none), split parts ("" for none), texts and features, float32 (V, F), of its
    nodes.

    Several graphs of one data set are combined into one: ``graph_ids`` are their names, ``member`` int64 (V,) is the
    graph of each node, and node ids are pairs (graph, node).
    """

    graph: Graph
    labels: list[str] | None = None
    split: list[str] | None = None
    texts: list[str] | None = None
    features: np.ndarray | None = None
    graph_ids: list[str] | None = None
    member: np.ndarray | None = None
    dropped: int = 0

    @classmethod
    def from_pyg(cls, data: Any, **options: Any) -> GraphData:
        """Convert a PyTorch Geometric ``Data``: ``y`` as labels, ``train_mask``, ``val_mask`` and ``test_mask`` as
        split, ``x`` as features, ``text`` as texts; ``options`` are :meth:`Graph.from_pyg`'s.

        Raises:
            DataError: as :meth:`Graph.from_pyg`; ``y``, ``x`` or a mask of another length than nodes; a mask that is
                none, or a node in two of them; ``HeteroData``.
        """
        if hasattr(data, "node_types"):
            raise DataError("labels and masks of HeteroData cannot be read: convert it with to_homogeneous() first")
        graph = Graph.from_pyg(data, **options)
        labels, split = _attribute(data, "y", len(graph)), None
        masks = {name: part for part, names in MASKS.items() for name in names if hasattr(data, name)}
        for name, part in masks.items():
            split = [""] * len(graph) if split is None else split
            for row in np.flatnonzero(_mask(data, name, len(graph))):
                if split[row] not in ("", part):
                    raise DataError(f"node {row} is in the masks of two parts: {split[row]} and {part}")
                split[row] = part
        x = _attribute(data, "x", len(graph), columns=True)
        features = None if x is None else x.astype(np.float32)
        if features is not None and not (finite := np.isfinite(features).all(axis=1)).all():
            raise DataError(f"x of node {int(finite.argmin())} holds a number that is not finite")
        names = None if labels is None else as_texts(labels.tolist())
        return cls(graph, names, split, None if graph.texts is None else list(graph.texts), features)


MASKS = {"train": ("train_mask",), "valid": ("val_mask", "valid_mask"), "test": ("test_mask",)}


def _mask(data: Any, name: str, nodes: int) -> np.ndarray:
    values = _attribute(data, name, nodes)
    if values is None:
        return np.zeros(nodes, dtype=bool)
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise DataError(f"{name} holds other values than true and false")
    return values.astype(bool)


def _attribute(data: Any, name: str, nodes: int, *, columns: bool = False) -> np.ndarray | None:
    given = getattr(data, name, None)
    if given is None:
        return None
    values = as_array(given)
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 and not columns else values
    if values.ndim != 1 + columns or len(values) != nodes:
        raise DataError(f"{name} has the shape {values.shape}, but {nodes} nodes need one row each")
    return values


@dataclass(frozen=True, eq=False)
class EdgeData:
    """Edges of the graph in ``nodes``: the rows of their ends, int64 (E, 2), their labels ("" for none), split parts
    ("" for none) and texts, if any. Edges that repeat another one of the same label and text are left out."""

    nodes: GraphData
    ends: np.ndarray
    labels: list[str]
    split: list[str] | None
    texts: list[str] | None


@dataclass(frozen=True, eq=False)
class TripleData:
    """Entities, relations and the parts' triples [head row, relation, tail row], int64 (T, 3). ``graph`` is undirected
    and contains the training triples only."""

    ids: list[str]
    texts: list[str] | None
    relations: list[str]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    graph: Graph
    dropped: int = 0


def read_graph(folder: Path, settings: GraphDataSettings | None = None, *, directed: bool = False) -> GraphData:
    """Read a graph from the tables ``edges`` (``source``, ``target``, optional ``weight``) and optionally ``nodes``
    (``node_id``, optional ``text``, ``label``, ``split``, and ``words``: lists of word indices). With a column
    ``graph_id`` in both, ids count within their graph.

    Raises:
        DataError: a file is missing or cannot be used, or an edge ends at an unknown node.
    """
    s = settings or GraphDataSettings()
    return _graph(*_read(folder, "edges", "nodes", s), s, directed)[0]


def read_edges(folder: Path, settings: GraphDataSettings | None = None, *, directed: bool = False) -> EdgeData:
    """Read the tables of :func:`read_graph`, ``edges`` with a column ``label`` and optionally ``split``, ``text`` and
    the settings' ``edge_attributes``.

    Raises:
        DataError: as :func:`read_graph`, or a column is missing or cannot be used.
    """
    s = settings or GraphDataSettings()
    raw, nodes = _read(folder, "edges", "nodes", s)
    data, ends, kept = _graph(raw, nodes, s, directed)
    given = pd.DataFrame({"label": columns.words(Column(raw.file, "label", raw.column("label")))})
    for name, values in (("text", _edge_texts(raw, s)), ("split", _parts(raw))):
        if values is not None:
            given[name] = values
    given = given[kept].reset_index(drop=True)
    given[["low", "high"]] = ends if directed else np.sort(ends, axis=1)
    once = ~given.duplicated([name for name in given if name != "split"]).to_numpy()
    ends, given = ends[once], given[once]
    labels, texts, split = (given[n].tolist() if n in given else None for n in ("label", "text", "split"))
    if split is None and s.split is not None:
        split = split_by_class(len(ends), labels, None if data.member is None else data.member[ends[:, 0]], s.split)
    return EdgeData(data, ends, given["label"].tolist(), split, texts)


def _graph(
    edges: RawTable, nodes: RawTable | None, s: GraphDataSettings, directed: bool
) -> tuple[GraphData, np.ndarray, np.ndarray]:
    """Return the graph of a table of edges and one of nodes, the rows of both ends of its edges, int64 (E, 2), and the
    mask of the rows of the table that are kept."""
    of_edge = _optional_ids(edges, "graph_id")
    of_node = None if nodes is None else _optional_ids(nodes, "graph_id")
    if nodes is not None and (of_edge is None) != (of_node is None):
        lacking = edges if of_edge is None else nodes
        lacking.column("graph_id")  # raises that it is missing
    ends = [_keys(_ids(edges, name), of_edge) for name in ("source", "target")]
    known = None if nodes is None else _unique(nodes, "node_id", of_node)
    names, rows, kept = _resolve(edges, ("source", "target"), ends, known, s.dangling)
    weights = None
    if "weight" in edges.names:
        column = Column(edges.file, "weight", edges.column("weight"))
        weights = columns.numbers(column)
        column.refuse_first(weights < 0, "{} is negative; a length is not")
        column.refuse_first(weights > np.finfo(np.float32).max, "{} is too large for a length")
        weights = weights[kept]
    added = 0 if known is None else len(names) - len(known)
    texts = _padded(None if nodes is None else _optional(nodes, "text"), added)
    graph = Graph.from_arrays(*rows, len(names), weights=weights, directed=directed, ids=names, texts=texts)
    graph_ids, member = _graphs(names) if of_edge is not None else (None, None)
    labels = _padded(None if nodes is None else _optional(nodes, "label"), added)
    split = _padded(None if nodes is None else _parts(nodes), added)
    if split is None and s.split is not None:
        split = split_by_class(len(names), labels, member, s.split)
    features = None if nodes is None else _bag_of_words(nodes)
    if features is not None and added:
        features = np.concatenate([features, np.zeros((added, features.shape[1]), dtype=np.float32)])
    data = GraphData(graph, labels, split, texts, features, graph_ids, member, int((~kept).sum()))
    return data, np.stack(rows, axis=1), kept


def read_triples(folder: Path, settings: GraphDataSettings | None = None) -> TripleData:
    """Read triples from the tables ``triples`` (``head``, ``relation``, ``tail``, optional ``split``) and optionally
    ``entities`` (``entity_id``, optional ``text``). Without a column ``split`` or a split in the settings, all triples
    are for training.

    Raises:
        DataError: a file is missing or cannot be used, or a triple has an unknown entity.
    """
    s = settings or GraphDataSettings()
    triples, entities = _read(folder, "triples", "entities", s)
    head, relation, tail = (_ids(triples, name) for name in ("head", "relation", "tail"))
    known = None if entities is None else _unique(entities, "entity_id")
    names, (begin, end), kept = _resolve(triples, ("head", "tail"), [list(head), list(tail)], known, s.dangling)
    texts = _padded(None if entities is None else _optional(entities, "text"), len(names) - len(known or names))
    relations = sorted(set(relation[kept]))
    rows = np.stack([begin, pd.Index(relations).get_indexer(relation[kept]), end], axis=1).astype(np.int64)
    given = _parts(triples, everywhere=True)
    if given is not None:
        part = np.array(given)[kept]
    elif s.split is not None:
        part = split_triples(rows, s.split)
    else:
        part = np.full(len(rows), "train")
    train, valid, test = (rows[part == name] for name in PART_NAMES)
    graph = Graph.from_arrays(train[:, 0], train[:, 2], len(names), ids=names, texts=texts)
    return TripleData(names, texts, relations, train, valid, test, graph, int((~kept).sum()))


def _keys(ids: pd.Series, graphs: pd.Series | None) -> list[Any]:
    return ids.tolist() if graphs is None else list(zip(graphs, ids, strict=True))


def _graphs(names: Sequence[Any]) -> tuple[list[str], np.ndarray]:
    graphs = list(dict.fromkeys(graph for graph, _ in names))
    place = {graph: row for row, graph in enumerate(graphs)}
    return graphs, np.array([place[graph] for graph, _ in names], dtype=np.int64)


def _padded(values: list[str] | None, added: int) -> list[str] | None:
    return None if values is None else values + [""] * added


def _resolve(
    raw: RawTable, columns: tuple[str, str], ends: list[list[Any]], known: list[Any] | None, dangling: str
) -> tuple[list[Any], tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return the names of nodes, the rows of both ends of the edges that are kept, int64, and the mask of these
    edges."""
    names = list(known) if known is not None else []
    if known is None or dangling == "add":
        names = list(dict.fromkeys([*names, *(end for pair in zip(*ends, strict=True) for end in pair)]))
    row_of = {name: row for row, name in enumerate(names)}
    rows = [np.array([row_of.get(end, -1) for end in own], dtype=np.int64) for own in ends]
    for name, own, given in zip(columns, rows, ends, strict=True):
        if dangling == "error" and (own < 0).any():
            row = int((own < 0).argmax())
            raise DataError(f"no such node {given[row]!r}", file=raw.file, row=row + 1, column=name)
    kept = (rows[0] >= 0) & (rows[1] >= 0)
    return names, (rows[0][kept], rows[1][kept]), kept


def find_table(folder: Path, table: str) -> Path | None:
    """Return the path of a table in any format, or ``None``."""
    return next((path for suffix in FORMATS if (path := folder / f"{table}{suffix}").is_file()), None)


def require_table(folder: Path, table: str) -> Path:
    """Return the path of a table in any format.

    Raises:
        DataError: it is missing.
    """
    path = find_table(folder, table)
    if path is None:
        raise DataError(f"no {table}{FORMATS[0]} (or {', '.join(FORMATS[1:])}) there", file=folder)
    return path


def _read(folder: Path, table: str, other: str, settings: GraphDataSettings) -> tuple[RawTable, RawTable | None]:
    """Read a table and one that may be missing, and rename their columns.

    Raises:
        DataError: a column to rename is in neither.
    """
    path = find_table(folder, other)
    main, more = read_raw(require_table(folder, table)), None if path is None else read_raw(path)
    there = {name for raw in (main, more) if raw is not None for name in raw.table.column_names}
    for ours, theirs in settings.columns.items():
        if theirs not in there:
            reason = f"there is no column '{theirs}', which data.columns names for '{ours}'"
            raise DataError(reason, file=main.file)
    return _renamed(main, settings), None if more is None else _renamed(more, settings)


def _renamed(raw: RawTable, settings: GraphDataSettings) -> RawTable:
    given = {theirs: ours for ours, theirs in settings.columns.items()}
    # A column whose name is the target of a renaming is renamed itself.
    return raw.renamed(lambda name: given.get(name, f"({name})" if name in settings.columns else name))


def _ids(raw: RawTable, name: str) -> pd.Series:
    return columns.ids(Column(raw.file, name, raw.column(name)))


def _optional_ids(raw: RawTable, name: str) -> pd.Series | None:
    return _ids(raw, name) if name in raw.names else None


def _unique(raw: RawTable, name: str, graphs: pd.Series | None = None) -> list[Any]:
    given = _keys(_ids(raw, name), graphs)
    again = pd.Series(given).duplicated().to_numpy()
    if again.any():
        row = int(again.argmax())
        raise DataError(f"duplicate id {given[row]!r}", file=raw.file, row=row + 1, column=name)
    return given


def _optional(raw: RawTable, name: str) -> list[str] | None:
    if name not in raw.names:
        return None
    return columns.words(Column(raw.file, name, raw.column(name)))


def _edge_texts(raw: RawTable, settings: GraphDataSettings) -> list[str] | None:
    """Return the attributes of every edge as ``name value`` and its text; fractions have four digits."""
    own = [name for name in ("text",) if name in raw.names]
    parts = []
    for name in (*settings.edge_attributes, *own):
        values = columns.words(Column(raw.file, name, raw.column(name)))
        values = [f"{float(value):.4g}" if FRACTION.fullmatch(value) else value for value in values]
        parts.append(values if name in own else [value and f"{name} {value}" for value in values])
    return [" ; ".join(filter(None, given)) for given in zip(*parts, strict=True)] if parts else None


def _parts(raw: RawTable, *, everywhere: bool = False) -> list[str] | None:
    given = _optional(raw, "split")
    if given is None:
        return None
    known = PARTS if everywhere else {**PARTS, "": ""}
    for row, name in enumerate(given):
        if name.lower() not in known:
            reason = f"'{name}' is not a part of a split ({', '.join(PARTS)})"
            raise DataError(reason, file=raw.file, row=row + 1, column="split")
    return [known[name.lower()] for name in given]


def _bag_of_words(raw: RawTable) -> np.ndarray | None:
    if "words" not in raw.names:
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
        raise column.refuse(f"{column.values[row].as_py()} are not word indices (0 .. {MOST_WORDS - 1})", row)
    out = np.zeros((len(counts), int(words.max(initial=-1)) + 1), dtype=np.float32)
    out[rows, words] = 1.0
    return out
