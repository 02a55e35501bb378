"""Edge classification: the class of an edge, from its two nodes and its own text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from scipy import sparse

from nodetok.asking.wordings import EDGE_CLASSIFICATION
from nodetok.baselines.linear import bag_of_words, logistic_regression
from nodetok.files import EdgeData
from nodetok.language.interface import Chunk, Examples, Task, described
from nodetok.language.prompts import EDGE_TEXT, Prompts
from nodetok.settings import TokenizerSettings
from nodetok.tasks.completion import facts
from nodetok.tokenizer import NodeTokenizer
from setrec.errors import DataError

TEXT = "what is the class of the edge from [[0]] to [[1]] ? answer :"


def edge_classification(
    data: EdgeData,
    features: np.ndarray | None,
    settings: TokenizerSettings,
    descriptions: Mapping[str, str] | None = None,
) -> Task:
    """Return the task of predicting the class of an edge.

    ``features`` (V, F) of the nodes; ``descriptions``: descriptions of classes by name.

    The graph contains all edges. Nodes show the classes of their training edges as relations to their neighbours, but
    in a prompt neither end shows the other one, so a prompt never contains its answer.

    Raises:
        DataError: a part of the split is empty, or fewer than two classes.
    """
    graph, part = data.nodes.graph, data.split or [""] * len(data.labels)
    rows = {name: np.array([r for r, p in enumerate(part) if p == name and data.labels[r]], dtype=np.int64)
            for name in ("train", "valid", "test")}  # fmt: skip
    for name, own in rows.items():
        if not len(own):
            raise DataError(f"no labelled edge in the {name} part")
    names = tuple(sorted({data.labels[row] for row in rows["train"]}))
    if len(names) < 2:
        raise DataError(f"edge classification needs two classes in the training part, not {len(names)}")
    number = {name: row for row, name in enumerate(names)}
    targets = np.array([number.get(label, -1) for label in data.labels])

    def ask(own: np.ndarray) -> Examples:
        ends = data.ends[own]
        hidden = np.stack([ends[:, ::-1], np.full_like(ends, -1)], axis=2)
        texts = None if data.texts is None else [data.texts[row] for row in own]
        return Examples(Prompts([TEXT] * len(own), ends, hidden, edge_texts=texts), targets[own])

    train, test = ask(rows["train"]), ask(rows["test"])

    def draw(rng: np.random.Generator) -> Iterator[Chunk]:
        # Labels may be few: an epoch, which ends with validation, has about a thousand examples.
        passes = max(1, 1_000 // len(train))
        yield train.take(np.concatenate([rng.permutation(len(train)) for _ in range(passes)])), None

    tokenizer = NodeTokenizer.fit(graph, settings)

    def majority(_: int, seconds: float) -> dict[str, np.ndarray]:
        return metrics(np.full(len(test), np.bincount(train.targets).argmax()), test.targets)

    def linear(_: int, seconds: float) -> dict[str, np.ndarray]:
        of_edge = edge_features(data, features, tokenizer)
        predicted = logistic_regression(of_edge, targets, rows["train"], rows["valid"], seconds)
        return metrics(predicted[rows["test"]], test.targets)

    # The last relation, without a name, is that of edges whose class is not for training.
    relation = np.full(len(targets), len(names))
    relation[rows["train"]] = train.targets
    shown = described(names, descriptions)
    return Task(
        "edge_classification", graph, tokenizer.table, names, draw, ask(rows["valid"]), test,
        lambda scores, examples: metrics(scores.argmax(axis=1), examples.targets), "accuracy",
        [TEXT, *EDGE_TEXT, *names, *(shown or ()), *(graph.texts or ()), *(train.prompts.edge_texts or ())], features,
        facts(np.stack([data.ends[:, 0], relation, data.ends[:, 1]], axis=1), len(names) + 1), (*names, ""),
        tokenizer=tokenizer, opponents={"majority class": majority, "logistic regression": linear},
        node_texts=graph.texts, edge_texts=data.texts or [""] * len(targets), class_texts=shown, show_classes=True,
        measured_whole=True, wordings={TEXT: EDGE_CLASSIFICATION},
    )  # fmt: skip


def edge_features(data: EdgeData, features: np.ndarray | None, tokenizer: NodeTokenizer) -> sparse.csr_matrix:
    """Return features (E, F) for linear models: positions, features and words of both ends, and words of the edge."""
    texts, blocks = data.nodes.texts, [sparse.csr_matrix(tokenizer.transform())]
    blocks += [] if features is None else [sparse.csr_matrix(features)]
    blocks += [] if texts is None else [bag_of_words(texts)]
    of_node = sparse.hstack(blocks).tocsr()
    parts = [of_node[data.ends[:, 0]], of_node[data.ends[:, 1]]]
    parts += [] if data.texts is None else [bag_of_words(data.texts)]
    return sparse.hstack(parts).tocsr()


def metrics(predicted: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Return accuracy and macro F1 of every example, float64 (B,), from classes int (B,).

    The mean of an example's values is the metric of all examples. Macro F1 is no mean over examples: a value is the
    metric plus the influence of the example on it (Efron 1982, the infinitesimal jackknife), so that intervals over
    examples are correct to first order.
    """
    classes, count = np.union1d(predicted, targets), len(targets)
    macro = np.zeros(count)
    for name in classes:
        named = (predicted == name).astype(np.float64) + (targets == name)
        right = (predicted == name) & (targets == name)
        score = 2 * right.sum() / named.sum()
        macro += score + (2 * right - score * named) * count / named.sum()
    return {"accuracy": (predicted == targets).astype(np.float64), "macro F1": macro / len(classes)}
