"""Random splits of nodes, edges and triples, and the names of parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nodetok.settings import RandomSplit
from setrec.data.splits import NAMES
from setrec.errors import DataError

PART_NAMES = ("train", "valid", "test")
PARTS = {**{name: PART_NAMES[part] for name, part in NAMES.items()}, "dev": "valid"}


def split_by_class(
    count: int, labels: Sequence[str] | None, member: np.ndarray | None, settings: RandomSplit
) -> list[str]:
    """Return a random split part for each of ``count`` nodes or edges: equal shares of each class, or whole graphs."""
    rng = np.random.default_rng(settings.seed)
    if settings.by == "graph":
        if member is None:
            raise DataError("a split by graph needs the column graph_id")
        return [PART_NAMES[part] for part in _dealt(int(member.max()) + 1, settings, rng)[member]]
    classes = np.zeros(count, dtype=np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    parts = np.zeros(count, dtype=np.int64)
    for name in range(classes.max(initial=-1) + 1):
        rows = np.flatnonzero(classes == name)
        parts[rows] = _dealt(len(rows), settings, rng)
    return ["" if labels is not None and not labels[row] else PART_NAMES[part] for row, part in enumerate(parts)]


def _dealt(count: int, settings: RandomSplit, rng: np.random.Generator) -> np.ndarray:
    """Return random parts 0, 1, 2 for ``count`` rows; at least one row is for training."""
    test = min(round(settings.test * count), max(count - 1, 0))
    valid = min(round(settings.valid * count), max(count - 1 - test, 0))
    return rng.permutation(np.repeat([0, 1, 2], [count - valid - test, valid, test]))


def split_triples(triples: np.ndarray, settings: RandomSplit) -> np.ndarray:
    """Return a random split part for every triple. A triple stays in training if no other training triple has its head,
    tail or relation."""
    order = np.random.default_rng(settings.seed).permutation(len(triples))
    left = [np.bincount(triples[:, [0, 2]].ravel()), np.bincount(triples[:, 1])]
    part = np.full(len(triples), "train")
    wanted = [("test", round(settings.test * len(triples))), ("valid", round(settings.valid * len(triples)))]
    for row in order:
        if not wanted:
            break
        head, relation, tail = triples[row]
        own = 2 if head == tail else 1
        if left[0][head] <= own or left[0][tail] <= own or left[1][relation] <= 1:
            continue
        left[0][head] -= 1
        left[0][tail] -= 1
        left[1][relation] -= 1
        name, count = wanted[0]
        part[row] = name
        wanted[0] = (name, count - 1)
        if count <= 1:
            wanted.pop(0)
    return part
