"""From a history to ranked items: no HTTP and no Ray, so it can be tested and timed bare."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from serving.bundle.reader import Bundle
from serving.engine.candidates import Ranked, ScoringBatch
from serving.engine.items.coder import ItemCoder, TextEncode
from serving.engine.live_audit import Answered, Audits
from serving.engine.requests import Answer, Fallback, Recommendation, Request, RequestError
from serving.engine.state import State
from serving.engine.users import Known
from serving.stores import Change, LiveHistory, LiveStore, StoreError
from serving.stores.item_changes import ItemChange
from serving.telemetry import logs, metrics
from setrec.errors import SetRecError, UnknownItemError
from setrec.ragged import Ragged

__all__ = ["Answer", "Engine", "Recommendation", "Request", "RequestError"]

_CELLS = 1 << 23
"""Scores held at a time where those of all items are computed, 32 MB."""
_SEEN = 500  # of a live history's items, how many of the latest are left out of an answer


@dataclass(frozen=True)
class _Asked:
    """A request worked out: the history, item rows that may not be answered, and those that may (``None``: all)."""

    request: Request
    known: Known
    excluded: np.ndarray
    allowed: np.ndarray | None


class Engine:
    """Answers batches of requests from a bundle and the live state on top of it: one read of the store, one pass of
    the model, the entries of every component once. Threads may share it."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        store: LiveStore | None = None,
        max_k: int = 100,
        threads: int | None = None,
        encode: TextEncode | None = None,
        replay: bool = True,
    ) -> None:
        """``max_k``: the largest k allowed. ``threads``: for torch, in the whole process; ``None`` leaves it.

        ``encode`` takes the place of the bundle's own text encoder. With ``replay`` the changes in ``store`` are
        applied at once; where it cannot be read they are when it can be, by :meth:`catch_up`.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle, self.store = bundle, store
        self.max_k = min(max_k, len(bundle.catalog))
        self.coder = ItemCoder(bundle, encode)
        self.applied = 0
        self.synced = store is None
        self.state = State(bundle)
        self.lock = threading.Lock()  # held around every use of ``state``
        self._applying = threading.Lock()  # one change after the other, in their order
        self.recommend([Request(history=(bundle.catalog.item_ids[0],), k=1)])  # the first pass is a slow one
        if store is not None:
            self.coder.warm()
            if replay:
                self._try_to_catch_up()

    def recommend(self, requests: Sequence[Request], auditor: Audits | None = None) -> list[Answer | SetRecError]:
        """One answer, or the reason why there is none, per request; a bad request does not harm the others.

        ``auditor``: who is offered the answers that come from an approximate index.
        """
        live = self._live_histories(requests)
        results: dict[int, Answer | SetRecError] = {}
        asked: dict[int, _Asked] = {}
        with self.lock:
            for b, request in enumerate(requests):
                try:
                    asked[b] = self._work_out(request, live)
                except SetRecError as error:
                    results[b] = error
            results |= self._from_model({b: a for b, a in asked.items() if len(a.known.rows)}, auditor)
            results |= {b: self._from_popularity(a) for b, a in asked.items() if not len(a.known.rows)}
        for a in asked.values():
            if a.known.fallback is not None:
                metrics.FALLBACKS.labels(a.known.fallback.reason).inc()
        return [results[b] for b in range(len(requests))]

    def recommend_one(self, request: Request) -> Answer:
        """The answer to a single request.

        Raises:
            RequestError: k is out of range, the history is empty, or not exactly one of history and user is given.
            UnknownItemError: the history holds an item that the catalogue does not, and unknown items are refused.
            FilterError: the filter asks for an attribute that no item has.
        """
        result = self.recommend([request])[0]
        if isinstance(result, SetRecError):
            raise result
        return result

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply entries of the store's change log, in their order; those applied before are passed over."""
        with self._applying:
            for change in changes:
                if change.seq > self.applied:
                    self._apply(change)
                    self.applied = change.seq

    def catch_up(self) -> int:
        """Apply all that the store has logged, and say up to which number; 0 without a store.

        Raises:
            StoreError: the store cannot be read.
        """
        if self.store is not None:
            while changes := self.store.changes(self.applied):
                self.apply(changes)
            self.synced = True
        return self.applied

    def _try_to_catch_up(self) -> None:
        try:
            self.catch_up()
        except StoreError as error:
            logs.warning("live changes are not applied yet", error=type(error).__name__)

    def _apply(self, change: Change) -> None:
        try:
            item = ItemChange.read(change.payload) if change.kind == "put" else None
            coded = self.coder.code(change.id, item) if item is not None else None
        except SetRecError as error:
            # One entry that cannot be used must not keep later ones from being applied.
            logs.warning("a live change is passed over", seq=change.seq, error=str(error))
            return
        with self.lock:
            if item is not None and coded is not None:
                self.state.put(change.id, item.fields, coded)
            elif change.kind == "remove":
                self.state.remove(change.id)
            elif change.kind == "erase":
                self.state.users.erase(change.id)
            if self.state.is_wasteful:
                self.state = self.state.compact()

    def _live_histories(self, requests: Sequence[Request]) -> Mapping[str, LiveHistory | None]:
        """What the store knows of the users asked about, ``None`` for all where it cannot be read."""
        users = list(dict.fromkeys(request.user_id for request in requests if request.user_id is not None))
        if self.store is None or not users:
            return dict.fromkeys(users, LiveHistory())
        with metrics.stage("read_history"):
            try:
                found = self.store.latest(users, max(self.bundle.model.max_items, _SEEN))
            except StoreError:
                return dict.fromkeys(users)
        return dict(zip(users, found, strict=True))

    def _work_out(self, request: Request, live: Mapping[str, LiveHistory | None]) -> _Asked:
        if not 1 <= request.k <= self.max_k:
            raise RequestError(f"k is {request.k}; it must be between 1 and {self.max_k}")
        if (request.history is None) == (request.user_id is None):
            raise RequestError("give either history or user_id, one of the two")
        if request.user_id is None:
            known = self._given(request)
        elif live[request.user_id] is None and not self.synced:
            # Nobody knows yet whether this user was erased.
            known = Known(np.empty(0, np.int64), (), Fallback("store_unavailable", "popularity"))
        else:
            known = self.state.users.known(request.user_id, live[request.user_id], self.state.items)
        denied, _ = self.state.items.rows(request.deny)
        excluded = np.concatenate([known.rows, denied]) if request.exclude_history else denied
        return _Asked(request, known, excluded, self.state.allowed(request.filter, request.allow))

    def _given(self, request: Request) -> Known:
        """The history that a request spells out."""
        if not request.history:
            raise RequestError("the history is empty")
        rows, unknown = self.state.items.rows(request.history)
        if unknown and request.unknown_items == "refuse":
            raise UnknownItemError(f"unknown item {unknown[0]!r}")
        return Known(rows, unknown, None if len(rows) else Fallback("unknown_items", "popularity"))

    def _from_model(self, asked: Mapping[int, _Asked], auditor: Audits | None) -> dict[int, Answer]:
        every = list(asked.items())
        is_exact = self.bundle.retriever.kind == "exact"
        step = max(1, _CELLS // len(self.state.items)) if is_exact else max(1, len(every))
        found: dict[int, Answer] = {}
        for start in range(0, len(every), step):
            some = [a for _, a in every[start : start + step]]
            with metrics.stage("generate"):
                users = self._users([a.known.rows for a in some])
            with metrics.stage("components"):
                batch = self.state.batch(users, [a.known.rows for a in some])
            with metrics.stage("retrieve"):
                ranked = self._dense(batch, some) if is_exact else self._from_index(batch, some)
            if auditor is not None:
                for b, a in enumerate(some):
                    self._offer(auditor, batch, b, a, ranked[b])
            numbers = [number for number, _ in every[start : start + step]]
            found |= {b: self._answer(a, one) for b, a, one in zip(numbers, some, ranked, strict=True)}
        return found

    def _dense(self, batch: ScoringBatch, asked: Sequence[_Asked]) -> list[Ranked]:
        return batch.dense([a.request.k for a in asked], [self._left(a) for a in asked])

    def _from_index(self, batch: ScoringBatch, asked: Sequence[_Asked]) -> list[Ranked]:
        """The best of what the index proposes and of what components and the history add to."""
        additions, excluded = [], []
        for a, (rows, added) in zip(asked, batch.additions(), strict=True):
            may = self._may(a, rows)
            rows, added = rows[may], added[may]
            additions.append((rows, added))
            # Lowered rows are not searched for: they would take the place of others.
            excluded.append(np.concatenate([a.excluded, rows[added < 0]]))
        ks = [a.request.k for a in asked]
        hits = self.state.index.search(self.state.queries(batch.term.users), ks, excluded, [a.allowed for a in asked])
        candidates = [batch.candidates(b, k, hits[b], *additions[b]) for b, k in enumerate(ks)]
        return batch.ranked(candidates, ks)

    def _offer(self, auditor: Audits, batch: ScoringBatch, b: int, asked: _Asked, ranked: Ranked) -> None:
        if auditor.draws(self.bundle):
            alone, left, k = batch.only(b), self._left(asked), asked.request.k
            auditor.offer(Answered(self.bundle, lambda: alone.dense([k], [left])[0].scores, ranked.scores))

    def _users(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """User codes, float32 (B, D). The model is given the codes of the items at hand alone, not the whole table."""
        read = Ragged.of([rows[-self.bundle.model.max_items :] for rows in histories])
        rows, place = np.unique(read.values, return_inverse=True)
        codes = torch.from_numpy(self.state.codes.take(rows))
        with torch.inference_mode():
            users = self.bundle.model.user_codes(
                Ragged(place.astype(np.int32), read.offsets), self.bundle.manifest.scorer.slots, codes
            )
        return users.float().cpu().numpy()

    def _answer(self, asked: _Asked, ranked: Ranked) -> Answer:
        slots = self.bundle.manifest.kinds
        columns = {name: part.tolist() for name, part in ranked.parts.items()}
        shares = [
            {name: values[i] for name, values in columns.items() if values[i] or name in slots}
            for i in range(len(ranked.rows))
        ]
        return self._described(asked, ranked.rows, ranked.scores, shares)

    def _from_popularity(self, asked: _Asked) -> Answer:
        rows, counts = self.state.popularity.best(asked.request.k, self._left(asked))
        return self._described(asked, rows, counts, [{} for _ in rows])

    def _left(self, asked: _Asked) -> np.ndarray:
        """The rows that may be answered, bool (R,)."""
        left = self.state.index.alive.copy()
        if asked.allowed is not None:
            left &= asked.allowed
        left[asked.excluded] = False
        return left

    def _may(self, asked: _Asked, rows: np.ndarray) -> np.ndarray:
        """Which of a few ``rows`` may be answered, bool; the same as :meth:`_left` says of them."""
        may = self.state.index.alive[rows] & ~np.isin(rows, asked.excluded)
        return may if asked.allowed is None else may & asked.allowed[rows]

    def _described(
        self, asked: _Asked, rows: np.ndarray, scores: np.ndarray, shares: Sequence[dict[str, float]]
    ) -> Answer:
        items = []
        for row, score, part in zip(rows.tolist(), scores.tolist(), shares, strict=True):
            item_id, title, attributes = self.state.items.describe(row)
            items.append(Recommendation(item_id, title, score, part, attributes))
        return Answer(items, self.bundle.model_version, asked.known.fallback, asked.known.skipped)
