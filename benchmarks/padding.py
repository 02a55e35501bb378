"""How much of what a training step computes is padding, by how histories are put into batches."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from setrec.ragged import Ragged
from setrec.training import batches
from setrec.training.batches import QUERIES, Batch, Plan


def share(epoch: Iterable[Batch]) -> float:
    """Tokens that are padding; an item is one token, histories being read fused, a target ``QUERIES``."""
    computed, useful = np.array([batch.tokens(1, QUERIES) for batch in epoch]).sum(axis=0)
    return float(1 - useful / computed)


def shares(rows: Ragged, max_items: int, targets: int, seed: int = 0) -> dict[str, float]:
    """Padding of an epoch: one sample per prefix, padded to ``max_items`` as much published code does, and to the
    longest of the batch; all targets of a history in one row, in random order; the same packed by length (ours)."""

    def rng() -> np.random.Generator:
        return np.random.default_rng(seed)

    prefixes = batches.per_prefix(rows, max_items, targets, rng())
    packed = batches.one_pass(rows, max_items, targets, rng())
    return {
        "per prefix, fixed length": _fixed(prefixes, max_items),
        "per prefix, longest of the batch": share(prefixes),
        "one row per history, random order": share(_shuffled(packed, targets, rng())),
        "one row per history, packed by length": share(packed),
    }


def _fixed(prefixes: Plan, max_items: int) -> float:
    useful = sum(batch.tokens(1, QUERIES)[1] for batch in prefixes)
    return 1 - useful / ((max_items + QUERIES) * sum(len(batch.items) for batch in prefixes))


def _shuffled(packed: Plan, targets: int, rng: np.random.Generator) -> Plan:
    """The same windows in random order, cut where the targets of a batch have come together."""
    order = rng.permutation(np.concatenate(packed.steps))
    asked = np.cumsum((packed.windows.end - packed.windows.first)[order])
    cuts = np.flatnonzero(np.diff(asked // targets)) + 1
    return Plan(packed.histories, packed.windows, np.split(order, cuts))
