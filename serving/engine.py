"""From a history to ranked items: no HTTP and no Ray, so it can be tested and timed bare."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from serving import logs, metrics
from serving.auditor import Answered, Auditor
from serving.changes import ItemChange
from serving.exact import Hits
from serving.item_codes import ItemCoder, TextEncode
from serving.raised import Raised, walked
from serving.requests import Answer, Fallback, Recommendation, Request, RequestError
from serving.state import State
from serving.stores import Change, LiveHistory, LiveStore, StoreError
from serving.users import Known
from setrec.errors import SetRecError, UnknownItemError
from setrec.ragged import Ragged

if TYPE_CHECKING:
    from serving.bundle import Bundle

__all__ = ["Answer", "Engine", "Recommendation", "Request", "RequestError"]

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
    the model, one search of the index. Threads may share it."""

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

    def recommend(self, requests: Sequence[Request], auditor: Auditor | None = None) -> list[Answer | SetRecError]:
        """One answer, or the reason why there is none, per request; a bad request does not harm the others.

        ``auditor``: who is offered the answers that come from the index.
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
            code = self.coder.code(change.id, item) if item is not None else None
        except SetRecError as error:
            # One entry that cannot be used must not keep later ones from being applied.
            logs.warning("a live change is passed over", seq=change.seq, error=str(error))
            return
        with self.lock:
            if item is not None and code is not None:
                self.state.put(change.id, item.fields, code)
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

    def _from_model(self, asked: Mapping[int, _Asked], auditor: Auditor | None) -> dict[int, Answer]:
        if not asked:
            return {}
        every = list(asked.values())
        with metrics.stage("generate"):
            queries = self._queries([a.known.rows for a in every])
        held = [self._held(a) for a in every]
        with metrics.stage("retrieve"):
            excluded = [np.concatenate([a.excluded, rows]) for a, rows in zip(every, held, strict=True)]
            found = self.state.index.search(queries, [a.request.k for a in every], excluded, [a.allowed for a in every])
        if auditor is not None:
            for a, query, rows, hits in zip(every, queries, held, found, strict=True):
                self._offer(auditor, a, query, rows, hits)
        with metrics.stage("walk"):
            raised = self._raised(every, held)
            found = [self._best(*one) for one in zip(every, queries, raised, found, strict=True)]
        each = zip(asked.items(), queries, raised, found, strict=True)
        return {b: self._answer(a, query, rows, hits) for (b, a), query, rows, hits in each}

    def _held(self, asked: _Asked) -> np.ndarray:
        """Rows the model has read that may be answered, where their scores have a learned number added: the index does
        not know it, so they are not searched for but scored one by one."""
        if asked.request.exclude_history or self._return_bias == 0:
            return asked.excluded[:0]
        read = np.unique(asked.known.rows[-self.bundle.model.max_items :])
        return read[self._may(asked, read)]

    def _raised(self, every: Sequence[_Asked], held: Sequence[np.ndarray]) -> list[Raised]:
        """What is added to the scores of rows that may be answered."""
        if self.bundle.walk is None:
            return [Raised.of(own, self._return_bias, own[:0], np.empty(0)) for own in held]
        found = walked(self.bundle.walk, [a.known.rows for a in every], self.state.items)
        raised = []
        for a, own, (rows, more) in zip(every, held, found, strict=True):
            may = self._may(a, rows)
            raised.append(Raised.of(own, self._return_bias, rows[may], more[may]))
        return raised

    def _best(self, asked: _Asked, query: np.ndarray, raised: Raised, hits: Hits) -> Hits:
        """The best k of what the index found and of what is ``raised``."""
        if not len(raised.rows):
            return hits
        codes = self.state.index.codes(raised.rows)
        if len(hits.rows) == asked.request.k:
            # What the index found at the least is surpassed by few, and only those need exact scores.
            near = raised.total + codes @ query >= hits.scores[-1] - self.state.index.exact.slack(query)
            raised, codes = raised.where(near), codes[near]
        # Summed row by row, as exact search does, so that equal codes get equal scores.
        return raised.best(hits, (codes * query.astype(np.float64)).sum(axis=1), asked.request.k)

    @property
    def _return_bias(self) -> float:
        return self.bundle.model.return_bias(self.bundle.manifest.weights)

    def _offer(self, auditor: Auditor, asked: _Asked, query: np.ndarray, held: np.ndarray, hits: Hits) -> None:
        if auditor.draws(self.bundle.retriever):
            exact, left = self.state.index.exact, self._left(asked)
            left[held] = False
            auditor.offer(Answered(self.bundle.retriever, query, exact, left, asked.request.k, hits.scores))

    def _queries(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """User codes, float32 (B, D). The model is given the codes of the items at hand alone, not the whole table."""
        read = Ragged.of([rows[-self.bundle.model.max_items :] for rows in histories])
        rows, place = np.unique(read.values, return_inverse=True)
        codes = torch.from_numpy(self.state.index.codes(rows))
        with torch.inference_mode():
            users = self.bundle.model.user_codes(
                Ragged(place.astype(np.int32), read.offsets), self.bundle.manifest.weights, codes
            )
        return users.float().cpu().numpy()

    def _answer(self, asked: _Asked, query: np.ndarray, raised: Raised, hits: Hits) -> Answer:
        products = self.state.index.codes(hits.rows) * query.astype(np.float64)
        columns = self.bundle.manifest.code_columns
        shares = {kind: products[:, start:stop].sum(axis=1).tolist() for kind, (start, stop) in columns.items()}
        each = enumerate(raised.shares(hits.rows))
        per_item = [{kind: values[i] for kind, values in shares.items()} | added for i, added in each]
        return self._described(asked, hits.rows, hits.scores, per_item)

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
