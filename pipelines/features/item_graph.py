"""The graph of a catalogue and each item's position in it: the structural slot of the recommender.

Items stand beside what they are (attribute values, entities of a knowledge graph) and what is chosen with them. Only
training interactions make edges. Cold items have none of these, but they share attributes with warm ones, and a walk
from a cold item crosses an attribute to the items that users know.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import sparse

from nodetok.anchors import AnchorSettings, choose
from nodetok.distances import DistanceSettings, distances
from nodetok.graph import Graph
from nodetok.positions import PositionSettings
from nodetok.tokenizer import NodeTokenizer, TokenizerSettings
from pipelines.config.sections import StructuralSettings
from setrec.data import columns
from setrec.data.catalog import TRAIN, Catalog, Histories
from setrec.data.columns import Column
from setrec.data.formats import read_raw
from setrec.errors import DataError
from setrec.ragged import Ragged

STRUCTURAL = "structural"
"""The kind of the slot, and the name of its feature matrix."""
Measure = Callable[[Graph, np.ndarray, DistanceSettings], np.ndarray]
"""Distances of every node to anchors (rows), as :func:`nodetok.distances.distances` gives them."""


def build(catalog: Catalog, histories: Histories, settings: StructuralSettings) -> Graph:
    """The undirected graph whose first I rows are the catalogue's; attribute values and entities follow.

    Held-out interactions leave no trace: neither edges nor nodes depend on them. Ids are ``("item", id)``,
    ``("attribute", name, value)`` and ``("entity", id)``.

    Raises:
        DataError: a file of knowledge cannot be used, or links no item of the catalogue.
    """
    nodes = Nodes([("item", item) for item in catalog.item_ids])
    parts = [np.empty((0, 2), dtype=np.int64)]
    if "attributes" in settings.edges:
        parts.append(attribute_edges(catalog, nodes))
    if "interactions" in settings.edges:
        parts.append(interaction_edges(histories.upto(TRAIN), len(catalog), settings))
    if settings.triples is not None and settings.links is not None:
        parts.append(knowledge_edges(catalog, nodes, settings.triples, settings.links))
    return _without_leaves(np.concatenate(parts), nodes.ids, len(catalog))


@dataclass
class Nodes:
    """Ids of nodes, each with the row at which it was first met."""

    ids: list[Hashable]
    rows: dict[Hashable, int] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = {node: row for row, node in enumerate(self.ids)}

    def row(self, node: Hashable) -> int:
        """The row of a node, a new one where it was not met before."""
        if node not in self.rows:
            self.rows[node] = len(self.ids)
            self.ids.append(node)
        return self.rows[node]


def attribute_edges(catalog: Catalog, nodes: Nodes) -> np.ndarray:
    """Item to attribute value, int64 (E, 2). Values of one spelling under two attributes are two nodes."""
    pairs = [
        (item, nodes.row(("attribute", name, value)))
        for name, column in catalog.attributes.items()
        for item, values in enumerate(column)
        for value in values
    ]
    return _edges(pairs)


def interaction_edges(training: Ragged, items: int, settings: StructuralSettings) -> np.ndarray:
    """Item to item, int64 (E, 2): of each item the ``neighbours`` most often within ``window`` steps of it.

    Often is relative: meetings over the root of both items' meetings, so that hubs do not neighbour everything.
    """
    meetings = _meetings(training, items, settings.window)
    total = np.asarray(meetings.sum(axis=1)).ravel()
    pairs = meetings.tocoo()
    cosine = pairs.data / np.sqrt(total[pairs.row] * total[pairs.col])
    order = np.lexsort((pairs.col, -cosine, pairs.row))
    first = np.searchsorted(pairs.row[order], np.arange(items))
    place = np.arange(len(order)) - first[pairs.row[order]]
    kept = order[place < settings.neighbours]
    return np.stack([pairs.row[kept], pairs.col[kept]], axis=1).astype(np.int64)


def _meetings(training: Ragged, items: int, window: int) -> sparse.csr_matrix:
    """How often two different items stand at most ``window`` steps apart in a history, symmetric (I, I)."""
    user, item = training.row_of_value, training.values
    found = sparse.csr_matrix((items, items), dtype=np.float64)
    for steps in range(1, min(window, len(item) - 1) + 1):
        same = (user[steps:] == user[:-steps]) & (item[steps:] != item[:-steps])
        ends = item[:-steps][same], item[steps:][same]
        found += sparse.csr_matrix((np.ones(len(ends[0])), ends), shape=(items, items))
    return (found + found.T).tocsr()


def knowledge_edges(catalog: Catalog, nodes: Nodes, triples: Path, links: Path) -> np.ndarray:
    """Entity to entity, int64 (E, 2), relations ignored; a linked entity is its item.

    Links of items that the catalogue does not hold are left out.

    Raises:
        DataError: a file cannot be read, lacks a column, or no item of the catalogue is linked.
    """
    item_of = dict(zip(*_texts(links, "entity_id", "item_id"), strict=True))
    known = set(catalog.item_ids)
    row_of = {entity: nodes.rows["item", item] for entity, item in item_of.items() if item in known}
    if not row_of:
        raise DataError("links no item of the catalogue", file=links)

    def row(entity: str) -> int:
        return row_of[entity] if entity in row_of else nodes.row(("entity", entity))

    return _edges([(row(head), row(tail)) for head, tail in zip(*_texts(triples, "head_id", "tail_id"), strict=True)])


def _texts(path: Path, *names: str) -> list[list[str]]:
    """Columns of ids. One that is missing is refused: it would be an entity of its own that joins strangers."""
    raw = read_raw(path)
    return [columns.ids(Column(raw.file, name, raw.column(name))).tolist() for name in names]


def _edges(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _without_leaves(edges: np.ndarray, ids: list[Hashable], items: int) -> Graph:
    """Values and entities that touch a single node join nothing; they would only swallow walks. Items all stay."""
    degrees = Graph.from_arrays(edges[:, 0], edges[:, 1], len(ids)).degrees
    stays = (degrees > 1) | (np.arange(len(ids)) < items)
    source, target = (np.cumsum(stays) - 1)[edges[stays[edges].all(axis=1)]].T
    kept = [ids[row] for row in np.flatnonzero(stays)]
    return Graph.from_arrays(source, target, len(kept), ids=kept)


def positions(graph: Graph, items: int, settings: StructuralSettings, measure: Measure = distances) -> np.ndarray:
    """Positions of the first ``items`` rows, float32 (I, K), each column of mean 0 and variance 1 over placed items.

    K is the number of anchors, at most the number of nodes with an edge (one where there are none). An item without
    any edge has no place: its row is zero. ``measure``: what measures distances, this process if not told otherwise.
    """
    placed = graph.degrees > 0
    table = np.zeros((items, min(settings.anchors, max(1, int(placed.sum())))), dtype=np.float32)
    if placed[:items].any():
        found = _tokenizer(_connected(graph, placed), settings, measure).transform(np.arange(placed[:items].sum()))
        spread = found.std(axis=0, dtype=np.float64)
        table[placed[:items]] = (found - found.mean(axis=0, dtype=np.float64)) / np.where(spread > 1e-9, spread, np.inf)
    return table


def _connected(graph: Graph, kept: np.ndarray) -> Graph:
    """The graph without nodes that have no edge; as anchors they would be wasted, and coverage likes them."""
    source, target = graph.arcs()
    row = np.cumsum(kept) - 1
    return Graph.from_arrays(row[source], row[target], int(kept.sum()))


def _tokenizer(graph: Graph, settings: StructuralSettings, measure: Measure) -> NodeTokenizer:
    s = TokenizerSettings(
        anchors=AnchorSettings(count=settings.anchors),
        distances=DistanceSettings(kind=settings.kind, restart=settings.restart, steps=settings.steps),
        positions=PositionSettings(tau=settings.tau),
    )
    chosen = choose(graph, s.anchors)
    return NodeTokenizer.of(graph, s, chosen, measure(graph, chosen.rows, s.distances))
