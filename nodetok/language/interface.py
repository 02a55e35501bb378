"""The interface of all tasks of the graph language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nodetok.graph import Graph
from nodetok.language.prompts import Prompts
from nodetok.tokenizer import NodeTokenizer


@dataclass(frozen=True, eq=False)
class Examples:
    """Prompts and the row of the correct candidate of each, int64 (B,)."""

    prompts: Prompts
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> Examples:
        """Return the examples at ``rows``."""
        return Examples(self.prompts.take(rows), self.targets[rows])


Chunk = tuple[Examples, np.ndarray | None]
"""Training examples and the distances (V, K) to read them with; ``None``: the task's own."""

Measure = Callable[[np.ndarray, Examples], dict[str, np.ndarray]]
"""Scores (B, C) and examples to values (B,) by metric, NaN where an example does not count."""


Opponent = Callable[[int, float], dict[str, np.ndarray]]
"""Trains with a seed for at most the given CPU seconds, and returns the metrics of every test example."""


@dataclass(eq=False)
class Task:
    """Questions about a graph with their candidates and split.

    ``graph`` contains training edges only. ``table`` (V, K) are its nodes' distances to anchors, ``features`` (V, F)
    their features. ``draw`` yields an epoch of training examples. ``words`` are texts from which a backbone without a
    tokenizer learns its vocabulary. ``goal`` is the metric of validation. ``starts``: first row of each graph, if
    several are combined. ``facts`` int64 (A, 3): node, relation from 1, neighbour, if edges have relations.
    ``unlabelled``: questions without training answers, for :mod:`nodetok.language.consistency`. ``node_texts``: the
    text of every node, shown in words in addition to its tokens. ``edge_texts``: if the questions are about edges, the
    text of each of the facts in their own direction ("" for none).
    ``class_texts``: name and description of every candidate, shown in words with ``show_classes``. ``class_vectors``
    (C, F): vectors of the candidates' texts in the space of ``features``, by which models score classes that they were
    not trained on. ``wordings``: other
    wordings of the prompts for free-text questions. ``measured_whole``: ``measure`` compares examples with each other
    and needs all of them together. ``train``: if the task does not train the language model, a function from the name
    of an input ablation, the training settings and a progress callback to a trained reader.
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
    node_texts: Sequence[str] | None = None
    edge_texts: Sequence[str] | None = None
    class_texts: Sequence[str] | None = None
    class_vectors: np.ndarray | None = None
    show_classes: bool = False
    measured_whole: bool = False
    wordings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    train: Callable[[str, Any, Any], Any] | None = None


def accuracy(scores: np.ndarray, examples: Examples) -> dict[str, np.ndarray]:
    """Return whether the best candidate is correct; ties go to the first."""
    return {"accuracy": (scores.argmax(axis=1) == examples.targets).astype(np.float64)}


def described(names: Sequence[str], descriptions: Mapping[str, str] | None) -> list[str] | None:
    """Return the names of classes with their descriptions, if there are any."""
    if not descriptions:
        return None
    return [f"{name} : {descriptions[name]}" if name in descriptions else name for name in names]
