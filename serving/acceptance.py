"""What a model must show before it answers anyone: the stored requests, answered as they were at export."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.engine import Answer, Engine, Request
from serving.stores import LiveStore
from setrec.errors import BundleError, SetRecError

_TOLERANCE = 1e-3  # of the largest score of an answer: another processor adds up in another order


def accept(engine: Engine) -> None:
    """Ask the bundle's stored requests and compare the answers; call before any live change is applied.

    Raises:
        BundleError: an answer is another one than at export.
    """
    checks = engine.bundle.checks
    answers = engine.recommend([Request(**request) for request, _, _ in checks])
    for number, ((_, ids, scores), answer) in enumerate(zip(checks, answers, strict=True)):
        if isinstance(answer, SetRecError):
            raise BundleError(f"{engine.bundle.path}: stored request {number} is refused: {answer}")
        if difference := _difference(answer, ids, scores):
            raise BundleError(f"{engine.bundle.path}: stored request {number} is answered otherwise: {difference}")


def catch_up(engine: Engine, store: LiveStore) -> None:
    """Apply to ``engine`` all that was put, removed and erased.

    Raises:
        StoreError: the store cannot be read.
    """
    while changes := store.changes(engine.applied):
        engine.apply(changes)


def _difference(answer: Answer, ids: Sequence[str], scores: Sequence[float]) -> str | None:
    """Where the answer departs from what is expected; ids whose scores are all but equal may trade places."""
    found = {item.item_id: item.score for item in answer.items}
    if len(found) != len(ids):
        return f"{len(found)} items instead of {len(ids)}"
    if not ids:
        return None
    slack = _TOLERANCE * max(1.0, float(np.abs(scores).max()))
    in_order = [item.score for item in answer.items]
    if float(np.abs(np.subtract(in_order, scores)).max()) > slack:
        return "other scores"
    for item_id, score in zip(ids, scores, strict=True):
        if abs(found.get(item_id, scores[-1]) - score) > slack:
            return f"item {item_id!r} is missing"
    return None
