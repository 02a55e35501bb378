"""From a history to ranked items: no HTTP and no Ray, so it can be tested and timed bare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from serving.bundle import Bundle
from serving.retriever import Hits
from setrec.errors import SetRecError
from setrec.ragged import Ragged


class RequestError(SetRecError):
    """A request that no catalogue could answer."""


@dataclass(frozen=True)
class Request:
    """What is asked: ``k`` items to follow ``history`` (item ids, oldest first) or a known user's history.

    ``exclude_history``: whether items of the history are left out of the answer.
    """

    history: tuple[str, ...] | None = None
    user_id: str | None = None
    k: int = 10
    exclude_history: bool = True


@dataclass(frozen=True)
class Recommendation:
    """An item, its score and what each kind of slot contributed to it; the shares sum to the score.

    Scores order the items of one answer; a constant of the user is left out, so they do not compare across users.
    """

    item_id: str
    title: str
    score: float
    shares: dict[str, float]
    attributes: dict[str, list[str]]


@dataclass(frozen=True)
class Answer:
    """Items, best first, and the version of the model that chose them."""

    items: list[Recommendation]
    model_version: str


class Engine:
    """Answers batches of requests from a bundle: one pass of the model, one search of the index."""

    def __init__(self, bundle: Bundle, *, max_k: int = 100, threads: int | None = None) -> None:
        """``max_k``: the largest k allowed. ``threads``: for torch, in the whole process; ``None`` leaves it."""
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle = bundle
        self.max_k = min(max_k, len(bundle.catalog))
        self._codes = torch.from_numpy(bundle.codes)
        self.recommend([Request(history=(bundle.catalog.item_ids[0],), k=1)])  # the first pass is a slow one

    def recommend(self, requests: Sequence[Request]) -> list[Answer | SetRecError]:
        """One answer, or the reason why there is none, per request; a bad request does not harm the others."""
        results: dict[int, Answer | SetRecError] = {}
        known: dict[int, np.ndarray] = {}
        for b, request in enumerate(requests):
            try:
                known[b] = self._history(request)
            except SetRecError as error:
                results[b] = error
        if known:
            rows = list(known.values())
            queries = self._queries(Ragged.of(rows))
            ks = [requests[b].k for b in known]
            excluded = [r if requests[b].exclude_history else r[:0] for b, r in known.items()]
            found = self.bundle.retriever.search(queries, ks, excluded)
            results |= {b: self._answer(q, hits) for b, q, hits in zip(known, queries, found, strict=True)}
        return [results[b] for b in range(len(requests))]

    def recommend_one(self, request: Request) -> Answer:
        """The answer to a single request.

        Raises:
            RequestError: k is out of range, the history is empty, or not exactly one of history and user is given.
            UnknownItemError, UnknownUserError: an id the bundle does not hold.
        """
        result = self.recommend([request])[0]
        if isinstance(result, SetRecError):
            raise result
        return result

    def _history(self, request: Request) -> np.ndarray:
        """Item rows of a request's history, oldest first; at least one."""
        if not 1 <= request.k <= self.max_k:
            raise RequestError(f"k is {request.k}; it must be between 1 and {self.max_k}")
        if (request.history is None) == (request.user_id is None):
            raise RequestError("give either history or user_id, one of the two")
        if request.history is not None:
            rows = self.bundle.catalog.rows(request.history)
        else:
            histories = self.bundle.histories
            rows = histories.items[histories.row(str(request.user_id))]
        if not len(rows):
            raise RequestError("the history is empty")
        return rows

    def _queries(self, histories: Ragged) -> np.ndarray:
        """User codes, float32 (B, D)."""
        with torch.inference_mode():
            codes = self.bundle.model.user_codes(histories, self.bundle.manifest.weights, self._codes)
        return codes.float().cpu().numpy()

    def _answer(self, query: np.ndarray, hits: Hits) -> Answer:
        products = self.bundle.codes[hits.rows] * query.astype(np.float64)
        columns = self.bundle.manifest.code_columns
        shares = {kind: products[:, start:stop].sum(axis=1).tolist() for kind, (start, stop) in columns.items()}
        catalog = self.bundle.catalog
        items = [
            Recommendation(
                item_id=catalog.item_ids[row],
                title=catalog.titles[row],
                score=score,
                shares={kind: values[i] for kind, values in shares.items()},
                attributes={name: values[row] for name, values in catalog.attributes.items()},
            )
            for i, (row, score) in enumerate(zip(hits.rows.tolist(), hits.scores.tolist(), strict=True))
        ]
        return Answer(items, self.bundle.model_version)
