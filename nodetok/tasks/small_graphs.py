"""Tasks with one small graph for each example, combined into one graph; each has its own anchors.

Column k of the distance table is the distance to the k-th anchor of a node's own graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nodetok import anchors
from nodetok.distances import UNREACHABLE, distances
from nodetok.graph import Graph
from nodetok.language.interface import Chunk, Examples, Task, accuracy
from nodetok.settings import DistanceSettings, TokenizerSettings
from nodetok.splits import PARTS
from setrec.errors import DataError


@dataclass(frozen=True, eq=False)
class Small:
    """One graph: its number of nodes, edges int (E, 2) and their lengths."""

    nodes: int
    edges: np.ndarray
    weights: np.ndarray | None = None


def side_by_side(graphs: Sequence[Small], settings: TokenizerSettings) -> tuple[Graph, np.ndarray, np.ndarray]:
    """Return the combined graph, the table (V, K) of distances inside each graph, and the first row of each, int64
    (graphs + 1,).

    K is the configured number of anchors; a graph with fewer nodes uses all of them, in order, and the other columns
    are unreachable.
    """
    starts = np.concatenate([[0], np.cumsum([g.nodes for g in graphs])])
    ends = np.concatenate([g.edges + start for g, start in zip(graphs, starts[:-1], strict=True)])
    lengths = [g.weights for g in graphs if g.weights is not None]
    weighted = len(lengths) == len(graphs)
    weights = np.concatenate(lengths) if weighted else None
    whole = Graph.from_arrays(ends[:, 0], ends[:, 1], int(starts[-1]), weights=weights)
    wanted = settings.anchors.count or max(g.nodes for g in graphs)
    kind = DistanceSettings(kind="weighted") if weighted else settings.distances
    blank: float = UNREACHABLE if kind.kind == "hops" else np.inf
    table = np.full((len(whole), wanted), blank, dtype=np.uint8 if kind.kind == "hops" else np.float32)
    for small, start in zip(graphs, starts[:-1], strict=True):
        own = Graph.from_arrays(small.edges[:, 0], small.edges[:, 1], small.nodes, weights=small.weights)
        few = small.nodes <= wanted
        rows = np.arange(small.nodes) if few else anchors.choose(own, settings.anchors).rows
        table[start : start + small.nodes, : len(rows)] = distances(own, rows, kind)
    return whole, table, starts


def part_names(split: Sequence[str], places: Sequence[int]) -> list[str]:
    """Return the names of parts as :data:`nodetok.splits.PART_NAMES` spells them, or ``dev``, which is the test part of
    some data sets.

    Raises:
        DataError: another name.
    """
    names = []
    for row, given in zip(places, split, strict=True):
        name = given.strip().lower()
        if name not in PARTS:
            raise DataError(f"'{given}' is not a part of a split ({', '.join(PARTS)})", row=row + 1, column="split")
        names.append(name if name == "dev" else PARTS[name])
    return names


def split_task(
    name: str, graph: Graph, table: np.ndarray, starts: np.ndarray, names: Sequence[str], examples: Examples,
    split: Sequence[str], words: Sequence[str], seed: int, places: Sequence[int] | None = None,
) -> Task:  # fmt: skip
    """Return a task from split examples: ``test`` is the test part, or ``dev`` if there is none; a tenth of ``train``
    is for validation, unless there is a part for it. ``places``: rows of the examples in the table, for error messages.

    Raises:
        DataError: an unknown part, or nothing to train on, to validate or to test.
    """
    part = np.array(part_names(split, places or range(len(split))))
    if not (part == "test").any():
        part[part == "dev"] = "test"
    part[part == "dev"] = "valid"
    test = np.flatnonzero(part == "test")
    train = np.random.default_rng(seed).permutation(np.flatnonzero(part == "train"))
    valid = np.flatnonzero(part == "valid")
    if not len(valid):
        tenth = max(len(train) // 10, min(1, len(train) - 1))
        valid, train = train[:tenth], train[tenth:]
    if not (len(train) and len(valid) and len(test)):
        raise DataError(f"{name}: the split needs a training and a test part, and training two examples")

    def draw(rng: np.random.Generator) -> Iterator[Chunk]:
        yield examples.take(rng.permutation(train)), None

    learned = set(train.tolist())
    seen = [word for row, word in enumerate(words) if row % len(examples) in learned]
    return Task(
        name, graph, table, names, draw, examples.take(valid), examples.take(test), accuracy, "accuracy",
        [*seen, *names], starts=starts,
    )  # fmt: skip
