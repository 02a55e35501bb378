"""What a graph language model is asked: one small interface for every task, and node classification."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nodetok import opponents
from nodetok.graph import Graph
from nodetok.prompts import Prompts
from nodetok.tokenizer import NodeTokenizer, TokenizerSettings
from setrec.errors import DataError


@dataclass(frozen=True, eq=False)
class Examples:
    """Prompts and the row of the right candidate of each, int64 (B,)."""

    prompts: Prompts
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> Examples:
        """The given examples."""
        return Examples(self.prompts.take(rows), self.targets[rows])


Chunk = tuple[Examples, np.ndarray | None]
"""Training examples and the distances (V, K) to read them with; ``None``: the task's own."""

Measure = Callable[[np.ndarray, Examples], dict[str, np.ndarray]]
"""Scores (B, C) and examples to values (B,) by metric, NaN where an example does not count."""


Opponent = Callable[[int], dict[str, np.ndarray]]
"""Trains with a seed and returns the metrics of every test example."""


@dataclass(eq=False)
class Task:
    """Questions about a graph with their candidates and split.

    ``graph`` holds training edges only. ``table`` (V, K) are its nodes' distances to anchors, ``features`` (V, F) what
    else is known of them. ``draw`` makes an epoch of training examples. ``words`` are texts from which a backbone
    without a tokenizer learns its vocabulary. ``goal`` is the metric that validation goes by. ``starts``: where
    each graph begins, if there are many side by side. ``facts`` int64 (A, 3): node, relation from 1, neighbour, where
    edges have relations. ``unlabelled``: questions whose answers are not known or not to be learned from, for
    :mod:`nodetok.consistency`. ``train``: what trains on the task by the name of a view, the learning settings and
    a progress callback, and returns a reader, where it is not the language model.
    """

    name: str
    graph: Graph
    table: np.ndarray
    candidates: Sequence[str]
    draw: Callable[[np.random.Generator], Iterator[Chunk]]
    valid: Examples
    test: Examples
    measure: Measure
    goal: str
    words: Sequence[str]
    features: np.ndarray | None = None
    facts: np.ndarray | None = None
    relation_names: Sequence[str] = field(default_factory=tuple)
    node_candidates: bool = False
    tokenizer: NodeTokenizer | None = None
    node_labels: Sequence[str] | None = None
    starts: np.ndarray | None = None
    opponents: dict[str, Opponent] = field(default_factory=dict)
    unlabelled: Prompts | None = None
    train: Callable[[str, Any, Any], Any] | None = None


def accuracy(scores: np.ndarray, examples: Examples) -> dict[str, np.ndarray]:
    """Whether the best candidate is the right one; of equal scores the first counts as best."""
    return {"accuracy": (scores.argmax(axis=1) == examples.targets).astype(np.float64)}


def classification(
    graph: Graph,
    labels: Sequence[str],
    split: Sequence[str],
    features: np.ndarray | None,
    settings: TokenizerSettings,
) -> Task:
    """Which class does a node belong to? ``labels`` and ``split`` per node; ``""`` where there is none.

    Transductive: every node that is not a training example is ``unlabelled``, validation and test nodes among them;
    their labels are read by ``valid`` and ``test`` alone.

    Raises:
        DataError: a part of the split is empty, or fewer than two classes.
    """
    names = tuple(sorted({label for label, part in zip(labels, split, strict=True) if label and part == "train"}))
    if len(names) < 2:
        raise DataError(f"node classification needs two classes in the training part, not {len(names)}")
    number = {name: row for row, name in enumerate(names)}
    text = "what is the class of [[0]] ? answer :"

    def part(which: str) -> Examples:
        rows = np.array([r for r, (label, p) in enumerate(zip(labels, split, strict=True)) if p == which and label])
        if not len(rows):
            raise DataError(f"no labelled node in the {which} part")
        known = [number.get(labels[row], -1) for row in rows]
        return Examples(Prompts([text] * len(rows), rows[:, None]), np.array(known))

    train = part("train")

    def draw(rng: np.random.Generator) -> Iterator[Chunk]:
        # Often a handful of labels: an epoch, after which validation is asked, holds some thousand examples.
        passes = max(1, 1_000 // len(train))
        yield train.take(np.concatenate([rng.permutation(len(train)) for _ in range(passes)])), None

    test = part("test")
    others = np.setdiff1d(np.arange(len(graph)), train.prompts.nodes)

    def against(kind: opponents.Kind) -> Opponent:
        def run(seed: int) -> dict[str, np.ndarray]:
            assert features is not None
            known = np.array([number.get(label, -1) for label in labels])
            source, target = graph.undirected.arcs()
            edges = np.stack([source, target])[:, source < target]
            fitted, held = (np.array([part == which for part in split]) for which in ("train", "valid"))
            found = opponents.classify_nodes(kind, features, edges, known, fitted, held, seed)
            return {"accuracy": (found[test.prompts.nodes[:, 0]] == test.targets).astype(np.float64)}

        return run

    rivals = {} if features is None else {name: against(kind) for name, kind in opponents.CLASSIFIERS.items()}
    tokenizer = NodeTokenizer.fit(graph, settings)
    return Task(
        "classification", graph, tokenizer.table, names, draw, part("valid"), test, accuracy, "accuracy",
        [text, *names], features, tokenizer=tokenizer, node_labels=labels, opponents=rivals,
        unlabelled=Prompts([text] * len(others), others[:, None]) if len(others) else None,
    )  # fmt: skip
