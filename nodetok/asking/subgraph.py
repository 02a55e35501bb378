"""Retrieval of the supporting subgraph of an answer: a small connected subgraph around the nodes of a question.

Nodes near those of the question are found by personalised PageRank, and joined by a Steiner tree (Mehlhorn's
approximation, within twice the smallest); both by NetworkX, on the surrounding nodes.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
from networkx.algorithms.approximation import steiner_tree
from scipy import sparse
from scipy.sparse import csgraph

AROUND = 400
"""Number of nodes in the search, in addition to those on shortest paths."""


def retrieve(adjacency: sparse.csr_matrix, rows: list[int], extra: int = 4) -> tuple[list[int], list[tuple[int, int]]]:
    """Return nodes and edges of a subgraph that connects ``rows`` where paths exist, with up to ``extra`` nodes near
    them.

    ``adjacency``: symmetric (V, V). The nodes of the question come first.
    """
    if not rows:
        return [], []
    around = _around(adjacency, rows)
    local = nx.from_scipy_sparse_array(adjacency[around][:, around])
    places = {int(row): place for place, row in enumerate(around)}
    own = [places[row] for row in rows]
    rank = nx.pagerank(local, personalization=dict.fromkeys(own, 1.0), weight=None)
    near = [place for place in sorted(rank, key=lambda p: (-rank[p], p)) if place not in own][:extra]
    edges: set[tuple[int, int]] = set()
    for part in nx.connected_components(local):
        wanted = [place for place in [*own, *near] if place in part]
        if len(wanted) > 1 and any(place in part for place in own):
            edges |= {
                (min(a, b), max(a, b)) for a, b in steiner_tree(local.subgraph(part), wanted, method="mehlhorn").edges
            }
    selected = dict.fromkeys([*own, *(place for edge in sorted(edges) for place in edge)])
    return [int(around[p]) for p in selected], [(int(around[a]), int(around[b])) for a, b in sorted(edges)]


def _around(adjacency: sparse.csr_matrix, rows: list[int]) -> np.ndarray:
    """Return the nodes nearest to ``rows`` by breadth-first search, and those on shortest paths from the first of
    ``rows`` to the others."""
    visited: dict[int, None] = dict.fromkeys(rows)
    for number, row in enumerate(rows):
        order, before = csgraph.breadth_first_order(adjacency, row, directed=False)
        if number == 0:
            for other in rows[1:]:
                at = other
                while before[at] >= 0:
                    at = int(before[at])
                    visited[at] = None
        visited |= dict.fromkeys(order[: AROUND // len(rows)].tolist())
    return np.fromiter(visited, dtype=np.int64)
