"""The graph of a catalogue and each item's position in it: the structural slot of the recommender.

Items are connected to their attribute values, to entities of a knowledge graph, and to items chosen together with them.
Only training interactions make edges. Cold items have no such edges, but they share attributes with warm items, and a
walk from a cold item reaches warm items through an attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from nodetok.anchors import choose
from nodetok.distances import distances
from nodetok.graph import Graph
from nodetok.settings import AnchorSettings, DistanceSettings, PositionSettings, TokenizerSettings
from nodetok.tokenizer import NodeTokenizer
from pipelines.config.sections import StructuralSettings
from pipelines.data.parquet import id_of
from setrec.data import columns
from setrec.data.catalog import TRAIN, Catalog, Histories
from setrec.data.columns import Column
from setrec.data.formats import read_raw
from setrec.errors import DataError
from setrec.ragged import Ragged
from setrec.scoring.item_graph import largest
from setrec.scoring.kernels.pairs import pair_sums

STRUCTURAL = "structural"
"""The kind of the slot, and the name of its feature matrix."""
Measure = Callable[[Graph, np.ndarray, DistanceSettings], np.ndarray]
"""Computes the distances of every node to anchors (rows), as :func:`nodetok.distances.distances`."""


def build(catalog: Catalog, histories: Histories, settings: StructuralSettings) -> Graph:
    """Return the undirected graph whose first I rows are the catalogue's; attribute values and entities follow.

    Neither edges nor nodes depend on held-out interactions. Ids are ``("item", id)``, ``("attribute", name, value)``
    and ``("entity", id)``.

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
    """Ids of nodes and their rows, in order of first occurrence."""

    ids: list[Hashable]
    rows: dict[Hashable, int] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = {node: row for row, node in enumerate(self.ids)}

    def row(self, node: Hashable) -> int:
        """Return the row of a node, a new row for a new node."""
        if node not in self.rows:
            self.rows[node] = len(self.ids)
            self.ids.append(node)
        return self.rows[node]


def attribute_edges(catalog: Catalog, nodes: Nodes) -> np.ndarray:
    """Return edges from item to attribute value, int64 (E, 2). Equal values of two attributes are two nodes."""
    pairs = [
        (item, nodes.row(("attribute", name, value)))
        for name, column in catalog.attributes.items()
        for item, values in enumerate(column)
        for value in values
    ]
    return _edges(pairs)


def interaction_edges(training: Ragged, items: int, settings: StructuralSettings) -> np.ndarray:
    """Return edges from item to item, int64 (E, 2): for each item the ``neighbours`` strongest within ``window`` steps.

    Strength is the number of co-occurrences over the root of both items' co-occurrences, so that hubs do not neighbour
    everything.
    """
    pairs = partial(pair_sums, training, items, settings.window)
    total, edges, start = np.concatenate([np.asarray(rows.sum(axis=1)).ravel() for rows in pairs()]), [], 0
    for rows in pairs():
        row = np.repeat(np.arange(start, start + rows.shape[0]), np.diff(rows.indptr))
        rows.data /= np.sqrt(total[row] * total[rows.indices])
        kept = largest(rows, settings.neighbours).tocoo()
        edges.append(np.stack([kept.row + start, kept.col], axis=1).astype(np.int64))
        start += rows.shape[0]
    return np.concatenate(edges)


def knowledge_edges(catalog: Catalog, nodes: Nodes, triples: Path, links: Path) -> np.ndarray:
    """Return edges between entities, int64 (E, 2), without relations; a linked entity is replaced by its items.

    An item may have several entities and an entity several items; the triples of an entity then apply to each item.
    Links of items that are not in the catalogue are left out.

    Raises:
        DataError: a file cannot be read, lacks a column or an id, or no item of the catalogue is linked.
    """
    known = set(catalog.item_ids)
    rows_of: dict[str, list[int]] = {}
    for entity, given in _pairs(links, "entity_id", "item_id"):
        item = id_of(given) or given  # as ingest has read the catalogue's
        if item in known:
            rows_of.setdefault(entity, []).append(nodes.rows["item", item])
    if not rows_of:
        raise DataError("links no item of the catalogue", file=links)

    def rows(entity: str) -> list[int]:
        return rows_of[entity] if entity in rows_of else [nodes.row(("entity", entity))]

    pairs = _pairs(triples, "head_id", "tail_id")
    return _edges([ends for head, tail in pairs for ends in product(rows(head), rows(tail))])


def _pairs(path: Path, *names: str) -> Iterator[tuple[str, ...]]:
    """Return the rows of two columns of ids, in order; a missing or blank id is refused."""
    raw = read_raw(path)
    return zip(*(columns.ids(Column(raw.file, name, raw.column(name))).tolist() for name in names), strict=True)


def _edges(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _without_leaves(edges: np.ndarray, ids: list[Hashable], items: int) -> Graph:
    """Remove values and entities with a single edge, which connect nothing and would absorb walks. Items all stay."""
    degrees = Graph.from_arrays(edges[:, 0], edges[:, 1], len(ids)).degrees
    stays = (degrees > 1) | (np.arange(len(ids)) < items)
    source, target = (np.cumsum(stays) - 1)[edges[stays[edges].all(axis=1)]].T
    kept = [ids[row] for row in np.flatnonzero(stays)]
    return Graph.from_arrays(source, target, len(kept), ids=kept)


def positions(graph: Graph, items: int, settings: StructuralSettings, measure: Measure = distances) -> np.ndarray:
    """Return positions of the first ``items`` rows, float32 (I, K), with mean 0 and variance 1 over items with a
    position.

    K is the number of anchors, at most the number of nodes with an edge (one if there are none). The row of an item
    without an edge is zero. ``measure``: function that computes distances, by default in this process.
    """
    placed = graph.degrees > 0
    table = np.zeros((items, min(settings.anchors, max(1, int(placed.sum())))), dtype=np.float32)
    if placed[:items].any():
        found = _tokenizer(_connected(graph, placed), settings, measure).transform(np.arange(placed[:items].sum()))
        spread = found.std(axis=0, dtype=np.float64)
        table[placed[:items]] = (found - found.mean(axis=0, dtype=np.float64)) / np.where(spread > 1e-9, spread, np.inf)
    return table


def _connected(graph: Graph, kept: np.ndarray) -> Graph:
    """Return the graph without isolated nodes, which coverage would choose as useless anchors."""
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
