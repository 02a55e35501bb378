"""What a model must show before it answers anyone: the stored requests, answered as they were at export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.bundle import Bundle
from serving.engine import Answer, Engine, Request
from setrec.errors import BundleError, SetRecError

_TOLERANCE = 1e-3  # of the largest score of an answer: another processor adds up in another order


def accept(engine: Engine) -> None:
    """Ask the bundle's stored requests and compare the answers; call before any live change is applied.

    Raises:
        BundleError: an answer is another one than at export.
    """
    bundle = engine.bundle
    requests = [_request(bundle, request, engine.max_k) for request, _, _ in bundle.checks]
    answers = engine.recommend(requests)
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        _, ids, scores = bundle.checks[number]
        difference = _difference(answer, ids[: request.k], scores[: request.k])
        if difference is not None:
            raise BundleError(f"{bundle.path}: stored request {number} is answered otherwise: {difference}")


def _request(bundle: Bundle, stored: Mapping[str, Any], max_k: int) -> Request:
    """The stored request, a user's history spelled out: what a store holds of the user must not count here."""
    request = Request(**{**stored, "k": min(stored.get("k", Request.k), max_k)})
    if request.user_id is None:
        return request
    rows = bundle.histories.items[bundle.histories.row(request.user_id)]
    history = tuple(bundle.catalog.item_ids[row] for row in rows)
    return Request(**{**vars(request), "user_id": None, "history": history})


def _difference(answer: Answer | SetRecError, ids: Sequence[str], scores: Sequence[float]) -> str | None:
    """Where the answer departs from what is expected; ids whose scores are all but equal may trade places."""
    if isinstance(answer, SetRecError):
        return f"it is refused: {answer}"
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
