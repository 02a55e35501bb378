"""Link prediction on held-out pairs of nodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nodetok.asking.wordings import STRUCTURE, TEMPLATES, plain_question
from nodetok.distances import distances
from nodetok.graph import Graph
from nodetok.language.interface import Chunk, Examples, Task
from nodetok.language.prompts import Prompts
from nodetok.settings import TokenizerSettings
from nodetok.tokenizer import NodeTokenizer
from setrec.errors import DataError

FOLDS = 10
RANKED_AGAINST = 100
"""Number of pairs without an edge among which every edge is ranked for the reciprocal rank."""
TEXT = "are [[0]] and [[1]] linked ? answer :"
ANSWERS = ("no", "yes")


def links(
    graph: Graph, features: np.ndarray | None, settings: TokenizerSettings, seed: int = 0,
    parts: tuple[float, float] = (0.05, 0.10),
) -> Task:  # fmt: skip
    """Return the task of predicting held-out edges. Random shares ``parts`` of the edges, drawn by ``seed``, are for
    validation and test; the model reads the graph of the others. Each edge is paired with a pair of nodes without an
    edge.

    Training edges are hidden: each epoch splits the edges into folds, a fold is read with distances without its edges,
    and neither end shows the other among its neighbours.

    Metrics: the area under the ROC curve, as the share of pairs without an edge that score below an edge, and the mean
    reciprocal rank of an edge among :data:`RANKED_AGAINST` of them; ties count half.

    Raises:
        DataError: too few edges to hold some out, or too few pairs without one.
    """
    rng = np.random.default_rng(seed)
    source, target = graph.undirected.arcs()
    edges = np.stack([source, target], axis=1)[source < target]
    edges = edges[rng.permutation(len(edges))]
    held = [round(share * len(edges)) for share in parts]
    if min(held) < 1 or len(edges) - sum(held) < FOLDS:
        raise DataError(f"too few edges to hold some out for link prediction: {len(edges)}")
    valid, test, train = np.split(edges, np.cumsum(held))
    known = np.sort(edges[:, 0] * len(graph) + edges[:, 1])
    if len(graph) * (len(graph) - 1) // 2 - len(edges) < max(held):
        raise DataError(f"too few pairs of nodes without an edge: {len(graph)} nodes, {len(edges)} edges")

    def without(pairs: np.ndarray, graph: Graph) -> Graph:
        return graph.without(np.concatenate([pairs, pairs[:, ::-1]]))  # in a directed graph both ways

    whole = without(np.concatenate([valid, test]), graph)
    tokenizer = NodeTokenizer.fit(whole, settings)

    def pairs_without(count: int, rng: np.random.Generator) -> np.ndarray:
        pairs = np.empty((0, 2), dtype=np.int64)
        while len(pairs) < count:
            drawn = np.sort(rng.integers(len(graph), size=(2 * count, 2)), axis=1)
            new = ~np.isin(drawn[:, 0] * len(graph) + drawn[:, 1], known) & (drawn[:, 0] != drawn[:, 1])
            pairs = np.concatenate([pairs, drawn[new]])
        return pairs[:count]

    def ask(positive: np.ndarray, rng: np.random.Generator, *, hide: bool) -> Examples:
        pairs = np.concatenate([positive, pairs_without(len(positive), rng)])
        pairs = np.where(rng.random(len(pairs))[:, None] < 0.5, pairs, pairs[:, ::-1])
        targets = np.repeat([1, 0], len(positive))
        hidden = np.stack([pairs[:, ::-1], np.zeros_like(pairs)], axis=2) if hide else None
        return Examples(Prompts([TEXT] * len(pairs), pairs, hidden), targets)

    def draw(rng: np.random.Generator) -> Iterator[Chunk]:
        for fold in np.array_split(rng.permutation(len(train)), FOLDS):
            table = distances(without(train[fold], whole), tokenizer.anchors.rows, settings.distances)
            examples = ask(train[fold], rng, hide=True)
            yield examples.take(rng.permutation(len(examples))), table

    return Task(
        "links", whole, tokenizer.table, ANSWERS, draw, ask(valid, rng, hide=False), ask(test, rng, hide=False),
        _measure, "AUC", [TEXT, *ANSWERS, *(graph.texts or ())], features, tokenizer=tokenizer,
        node_texts=graph.texts, measured_whole=True,
        wordings={TEXT: (plain_question(TEMPLATES["adjacent"]), *STRUCTURE["adjacent"])},
    )  # fmt: skip


def _measure(scores: np.ndarray, examples: Examples) -> dict[str, np.ndarray]:
    margin, edge = scores[:, 1] - scores[:, 0], examples.targets == 1
    below = np.sort(margin[~edge])
    lower, upper = (np.searchsorted(below, margin[edge], side=side) for side in ("left", "right"))
    auc, rank = np.full(len(margin), np.nan), np.full(len(margin), np.nan)
    auc[edge] = (lower + upper) / 2 / len(below)
    some = np.random.default_rng(0).permutation(margin[~edge])[:RANKED_AGAINST]
    above = (some[None, :] > margin[edge][:, None]).sum(axis=1)
    rank[edge] = 1 / (1 + above + (some[None, :] == margin[edge][:, None]).sum(axis=1) / 2)
    return {"AUC": auc, "MRR": rank}
