"""Node classification."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from nodetok.asking.wordings import CLASSIFICATION
from nodetok.baselines import gnn
from nodetok.graph import Graph
from nodetok.knowledge.neighbours import centred
from nodetok.language.input_ablation import diffused
from nodetok.language.interface import Chunk, Examples, Opponent, Task, accuracy, described
from nodetok.language.prompts import Prompts
from nodetok.settings import TokenizerSettings
from nodetok.tokenizer import NodeTokenizer
from setrec.errors import DataError

UNTRAINED = ("text similarity", "averaged text similarity")
"""Opponents without training: the class whose text is most similar to the node's text, or to the texts around it."""
RESTART = 0.1
"""Restart of the walk that averages texts, as for the model's own second feature token."""


def classification(
    graph: Graph,
    labels: Sequence[str],
    split: Sequence[str],
    features: np.ndarray | None,
    settings: TokenizerSettings,
    descriptions: Mapping[str, str] | None = None,
    encode: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Task:
    """Return the task of predicting the class of a node; ``labels`` and ``split`` per node, ``""`` for none.

    ``descriptions``: descriptions of classes by name. ``encode``: if ``features`` are vectors of the nodes' texts, the
    function to vectors of the classes' texts in the same space; both are centred.

    Transductive: every node that is not a training example is ``unlabelled``, including validation and test nodes;
    their labels are read by ``valid`` and ``test`` only.

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
        # Labels may be few: an epoch, which ends with validation, has about a thousand examples.
        passes = max(1, 1_000 // len(train))
        yield train.take(np.concatenate([rng.permutation(len(train)) for _ in range(passes)])), None

    test = part("test")
    others = np.setdiff1d(np.arange(len(graph)), train.prompts.nodes)

    def against(kind: gnn.Kind) -> Opponent:
        def run(seed: int, seconds: float) -> dict[str, np.ndarray]:
            assert features is not None
            known = np.array([number.get(label, -1) for label in labels])
            source, target = graph.undirected.arcs()
            edges = np.stack([source, target])[:, source < target]
            fitted, held = (np.array([part == which for part in split]) for which in ("train", "valid"))
            predicted = gnn.classify_nodes(kind, features, edges, known, fitted, held, seed, seconds=seconds)
            return {"accuracy": (predicted[test.prompts.nodes[:, 0]] == test.targets).astype(np.float64)}

        return run

    shown = described(names, descriptions)
    class_vectors = None
    if encode is not None and features is not None:
        features, class_vectors = centred(features), centred(encode(shown or names))

    def by_similarity(vectors: np.ndarray, classes: np.ndarray) -> Opponent:
        return lambda _seed, _seconds: accuracy(vectors[test.prompts.nodes[:, 0]] @ classes.T, test)

    rivals = {} if features is None else {name: against(kind) for name, kind in gnn.CLASSIFIERS.items()}
    tokenizer = NodeTokenizer.fit(graph, settings)
    if class_vectors is not None:
        assert features is not None
        every = zip(UNTRAINED, (features, diffused(graph, features, RESTART)), strict=True)
        rivals |= {name: by_similarity(vectors, class_vectors) for name, vectors in every}
    return Task(
        "classification", graph, tokenizer.table, names, draw, part("valid"), test, accuracy, "accuracy",
        [text, *names, *(shown or ()), *(graph.texts or ())], features, tokenizer=tokenizer, node_labels=labels,
        opponents=rivals, node_texts=graph.texts, class_texts=shown, class_vectors=class_vectors, show_classes=True,
        wordings={text: CLASSIFICATION},
        unlabelled=Prompts([text] * len(others), others[:, None]) if len(others) else None,
    )  # fmt: skip
