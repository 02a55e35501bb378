"""Acceptance test of a model before it is served: stored requests must have the same answers as at export."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.bundle.manifest import Agreement
from serving.bundle.reader import Bundle, Check, Checks
from serving.engine.engine import Answer, Engine, Request
from serving.engine.live_audit import Answered
from serving.retrieval import recall_audit
from setrec.errors import BundleError, SetRecError

_CHECKED = 16  # requests whose answers are stored
_AUDITED, _K = 200, 10  # users whose answers are compared with the dense route at export, and number of items
_BATCH = 64
_TOLERANCE = 1e-3  # relative to the largest score of an answer: other CPUs add in another order


def examine(bundle: Bundle) -> tuple[Checks, Agreement]:
    """Return answers to some of the bundle's users, to be stored in it, and the agreement with the dense route."""
    engine = Engine(bundle)
    requests = _requests(bundle, _CHECKED)
    answers = [answer for answer in engine.recommend(requests) if isinstance(answer, Answer)]
    checks = tuple(
        Check(
            request={"user_id": request.user_id},
            item_ids=tuple(item.item_id for item in answer.items),
            scores=tuple(float(f"{item.score:.7g}") for item in answer.items),
        )
        for request, answer in zip(requests, answers, strict=True)
    )
    return Checks(checks=checks), _agreement(engine, _requests(bundle, _AUDITED))


def accept(engine: Engine) -> None:
    """Answer the bundle's stored requests and compare; call it before any live change is applied.

    Raises:
        BundleError: an answer differs from that at export.
    """
    bundle = engine.bundle
    # Live events in a store must not count here.
    requests = [
        Request(**{**stored, "k": min(stored.get("k", Request.k), engine.max_k), "live": False})
        for stored, _, _ in bundle.checks
    ]
    answers = engine.recommend(requests)
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        _, ids, scores = bundle.checks[number]
        difference = _difference(answer, ids[: request.k], scores[: request.k])
        if difference is not None:
            raise BundleError(f"{bundle.path}: stored request {number} has a different answer: {difference}")


def _difference(answer: Answer | SetRecError, ids: Sequence[str], scores: Sequence[float]) -> str | None:
    """Return how the answer differs from the expected one, if it does; ids with almost equal scores may be swapped."""
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


def _requests(bundle: Bundle, count: int) -> list[Request]:
    known = np.flatnonzero(bundle.histories.items.lengths)
    users = known[np.linspace(0, len(known) - 1, min(count, len(known))).astype(int)] if len(known) else known
    return [Request(user_id=bundle.histories.user_ids[user], k=min(_K, len(bundle.catalog))) for user in users.tolist()]


class _EveryAnswer:
    """Compares each answer with the dense route immediately."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def draws(self, bundle: Bundle) -> bool:
        """See :class:`serving.engine.live_audit.Audits`."""
        return True

    def offer(self, answered: Answered) -> None:
        """See :class:`serving.engine.live_audit.Audits`."""
        self.shares.append(answered.share())


def _agreement(engine: Engine, requests: list[Request]) -> Agreement:
    """Return the share of the dense route's best items in the engine's answers; nothing to compare for exact search."""
    every = _EveryAnswer()
    if engine.bundle.retriever.kind != "exact":
        for start in range(0, len(requests), _BATCH):
            engine.recommend(requests[start : start + _BATCH], every)
    found = recall_audit.of(every.shares, _K)
    exact = engine.bundle.retriever.kind == "exact"
    low = 1.0 if exact else found.low
    return Agreement(recall=found.recall, low=low, high=found.high, queries=found.queries, k=_K)
