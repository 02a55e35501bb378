"""From a history to ranked items: no HTTP and no Ray, so it can be tested and timed bare."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from serving.bundle.reader import Bundle
from serving.engine.asked import Asked, work_out
from serving.engine.explanation import NEAREST, history_effects, slot_queries
from serving.engine.items.coder import ItemCoder, TextEncode
from serving.engine.items.title_search import TitleSearch
from serving.engine.live_audit import Answered, Audits
from serving.engine.ranking.candidates import Ranked, ScoringBatch
from serving.engine.ranking.second_stage import SECOND_STAGE
from serving.engine.requests import (
    Answer,
    Explanation,
    HistoryEffect,
    NearestItem,
    Recommendation,
    Request,
    RequestError,
)
from serving.engine.rules import RuleSet
from serving.engine.shown import ShownItems
from serving.engine.state import State
from serving.engine.users import DEFAULT_WEIGHTS
from serving.stores import Change, LiveHistory, LiveStore, StoreError
from serving.stores.item_changes import ItemChange
from serving.telemetry import logs, metrics
from setrec.data.events import read
from setrec.errors import SetRecError
from setrec.ragged import Ragged
from setrec.scoring.diversity import GroupLimit, rerank

__all__ = ["Answer", "Engine", "Recommendation", "Request", "RequestError"]

_CELLS = 1 << 23
"""Scores held at a time where those of all items are computed, 32 MB."""
_SEEN = 500  # of a live history's items, how many of the latest are left out of an answer
_RULES = "rules"
"""Name of the term that boosts add to a score."""


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
        event_weights: Mapping[str, float] | None = None,
    ) -> None:
        """``max_k``: the largest k allowed. ``threads``: for torch, in the whole process; ``None`` leaves it.

        ``encode`` takes the place of the bundle's own text encoder. With ``replay`` the changes in ``store`` are
        applied at once; where it cannot be read they are when it can be, by :meth:`catch_up`. ``event_weights``: by
        type of event, in place of the bundle's.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle, self.store = bundle, store
        self.max_k = min(max_k, len(bundle.catalog))
        self.coder = ItemCoder(bundle, encode)
        self.applied = 0
        self.synced = store is None
        self.state = State(bundle, {**DEFAULT_WEIGHTS, **bundle.manifest.event_weights, **(event_weights or {})})
        self._shown, self._answered = ShownItems(len(bundle.catalog)), list[np.ndarray]()
        self.lock = threading.Lock()  # held around every use of ``state`` by requests, and every change to it
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
        asked: dict[int, Asked] = {}
        with self.lock:
            for b, request in enumerate(requests):
                try:
                    asked[b] = self._work_out(request, live)
                except SetRecError as error:
                    results[b] = error
            results |= self._from_model({b: a for b, a in asked.items() if len(a.known.rows)}, auditor)
            results |= {b: self._from_popularity(a) for b, a in asked.items() if not len(a.known.rows)}
            self._count_shown()
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

    @property
    def terms(self) -> tuple[str, ...]:
        """Names that factors may have: slot kinds of the model and components."""
        return (*self.bundle.manifest.kinds, *self.bundle.components)

    def similar(self, item_id: str, k: int = 10, by: str = "all") -> Answer:
        """The ``k`` items nearest to one, live ones too: by the whole score of a history that is this item alone
        (``all``), by the model's part of it (``model``), by one slot kind or by one component.

        Raises:
            UnknownItemError: there is no such item. RequestError: ``by`` is none of these, or k is out of range.
        """
        request = Request(history=(item_id,), k=k, rules=None)
        if by == "all":
            return self.recommend_one(request)
        with self.lock:
            asked = self._work_out(request, {})
            by_one = self._by_component if by in self.bundle.components else self._by_slots
            rows, scores = by_one(asked, by)
            answer = self._described(asked, rows, scores, [{by: score} for score in scores.tolist()])
            self._count_shown()
        return answer

    def _by_component(self, asked: Asked, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values of the best entries of one component."""
        nobody = np.zeros((1, self.bundle.codes.shape[1]), np.float32)
        places, values = self.state.batch(nobody, asked.known.events).entries[name]
        may = asked.may(self.state, places.values)
        rows, values = places.values[may], values[may].astype(np.float64)
        best = np.lexsort((rows, -values))[: asked.request.k]
        return rows[best], values[best]

    def _by_slots(self, asked: Asked, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores of the items nearest to what the model answers: in all slots, or in those of one kind."""
        user = self._users(asked.known.events)[0]
        queries = slot_queries(user, self.bundle.manifest.code_columns) | {"model": user}
        if name not in queries:
            raise RequestError(f"similar by '{name}'; there are all, model, {', '.join(self.terms)}")
        (hits,) = self.state.index.search(self.state.queries(queries[name][None]), asked.request.k, [asked.excluded])
        return hits.rows, hits.scores

    def search(self, text: str, limit: int) -> list[tuple[str, str, dict[str, list[str]]]]:
        """Id, title and attributes of up to ``limit`` items whose titles hold ``text``."""
        titles = self._titles
        with self.lock:
            return [self.state.items.describe(row) for row in titles.find(self.state, text, limit)]

    @cached_property
    def _titles(self) -> TitleSearch:
        return TitleSearch(self.bundle.catalog.titles, self.bundle.popularity)

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
            rules = RuleSet.read(change.payload) if change.kind == "put_rules" else RuleSet()
        except SetRecError as error:
            # One entry that cannot be used must not keep later ones from being applied.
            logs.warning("a live change is passed over", seq=change.seq, error=str(error))
            return
        with self.lock:
            if item is not None and coded is not None:
                self.state.put(change.id, item.fields, coded)
            elif change.kind == "remove":
                self.state.remove(change.id)
            elif change.kind == "put_rules":
                self.state.rules[change.id] = rules
            elif change.kind == "remove_rules":
                self.state.rules.pop(change.id, None)
            elif change.kind == "erase":
                self.state.users.erase(change.id)
        if self.state.is_wasteful:
            # Seconds for a large catalogue. Changes alone write to the state, one after the other: requests go on.
            compact = self.state.compact()
            with self.lock:
                self.state = compact

    def _live_histories(self, requests: Sequence[Request]) -> Mapping[str, LiveHistory | None]:
        """What the store knows of the users asked about, ``None`` for all where it cannot be read."""
        users = list(dict.fromkeys(r.user_id for r in requests if r.user_id is not None and r.live))
        if self.store is None or not users:
            return dict.fromkeys(users, LiveHistory())
        with metrics.stage("read_history"):
            try:
                found = self.store.latest(users, max(self.bundle.model.max_items, _SEEN))
            except StoreError:
                return dict.fromkeys(users)
        return dict(zip(users, found, strict=True))

    def _work_out(self, request: Request, live: Mapping[str, LiveHistory | None]) -> Asked:
        if not 1 <= request.k <= self.max_k:
            raise RequestError(f"k is {request.k}; it must be between 1 and {self.max_k}")
        for name in request.factors:
            if name not in self.terms:
                raise RequestError(f"there is no slot kind or component '{name}'; there are {', '.join(self.terms)}")
        own = None if request.user_id is None else live[request.user_id] if request.live else LiveHistory()
        return work_out(self.state, request, own, synced=self.synced)

    def _from_model(self, asked: Mapping[int, Asked], auditor: Audits | None) -> dict[int, Answer]:
        every = list(asked.items())
        is_exact = self.bundle.retriever.kind == "exact"
        step = max(1, _CELLS // len(self.state.items)) if is_exact else max(1, len(every))
        found: dict[int, Answer] = {}
        for start in range(0, len(every), step):
            some = [a for _, a in every[start : start + step]]
            histories = Ragged.joined([a.known.events for a in some])
            with metrics.stage("generate"):
                users = self._users(histories)
            with metrics.stage("components"):
                batch = self._boosted(self._batch(users, histories, some), some)
            with metrics.stage("retrieve"):
                ranked = self._dense(batch, some) if is_exact else self._from_index(batch, some)
            if auditor is not None:
                for b, a in enumerate(some):
                    self._offer(auditor, batch, b, a, ranked[b])
            for b, (number, a) in enumerate(every[start : start + step]):
                found[number] = self._answer(batch, b, a, ranked[b])
        return found

    def _batch(self, users: np.ndarray, histories: Ragged, asked: Sequence[Asked]) -> ScoringBatch:
        """Histories to be scored, one of each request, with its factors."""
        batch = self.state.batch(users, histories)
        return batch.scaled([a.request.factors for a in asked]) if any(a.request.factors for a in asked) else batch

    def _boosted(self, batch: ScoringBatch, asked: Sequence[Asked]) -> ScoringBatch:
        """The same with what the boosts of each request's rules add."""
        boosts = [() if a.rules is None else a.rules.boosts for a in asked]
        if not any(boosts):
            return batch
        found = [self.state.boosted(own) for own in boosts]
        return batch.adjusted(_RULES, [rows for rows, _ in found], [amounts for _, amounts in found])

    def _dense(self, batch: ScoringBatch, asked: Sequence[Asked]) -> list[Ranked]:
        return batch.dense([a.candidates for a in asked], [a.left(self.state) for a in asked])

    def _from_index(self, batch: ScoringBatch, asked: Sequence[Asked]) -> list[Ranked]:
        """The best of what the index proposes and of what components and the history add to."""
        additions, excluded = [], []
        for a, (rows, added) in zip(asked, batch.additions(), strict=True):
            may = a.may(self.state, rows)
            rows, added = rows[may], added[may]
            additions.append((rows, added))
            # Lowered rows are not searched for: they would take the place of others.
            excluded.append(np.concatenate([a.excluded, rows[added < 0]]))
        ks = [a.candidates for a in asked]
        hits = self.state.index.search(self.state.queries(batch.term.users), ks, excluded, [a.allowed for a in asked])
        candidates = [batch.candidates(b, k, hits[b], *additions[b]) for b, k in enumerate(ks)]
        return batch.ranked(candidates, ks)

    def _offer(self, auditor: Audits, batch: ScoringBatch, b: int, asked: Asked, ranked: Ranked) -> None:
        if auditor.draws(self.bundle):
            alone, left, k = batch.only(b), asked.left(self.state), asked.candidates
            auditor.offer(Answered(self.bundle, lambda: alone.dense([k], [left])[0].scores, ranked.scores))

    def _users(self, histories: Ragged) -> np.ndarray:
        """User codes, float32 (B, D). The model is given the codes of the items at hand alone, not the whole table."""
        known = Ragged.of([rows[-self.bundle.model.max_items :] for rows in read(histories)])
        rows, place = np.unique(known.values, return_inverse=True)
        codes = torch.from_numpy(self.state.codes.take(rows))
        with torch.inference_mode():
            users = self.bundle.model.user_codes(
                Ragged(place.astype(np.int32), known.offsets), self.bundle.manifest.scorer.slots, codes
            )
        return users.float().cpu().numpy()

    def _answer(self, batch: ScoringBatch, b: int, asked: Asked, ranked: Ranked) -> Answer:
        if self.state.second_stage is not None:
            with metrics.stage("second_stage"):
                ranked = self.state.second_stage.ordered(batch.only(b), ranked, frozenset(self.bundle.components))
        ranked = self._arranged(asked, ranked)
        if len(asked.pinned):
            (pinned,) = batch.only(b).ranked([asked.pinned], [len(asked.pinned)])
            at = dict(zip(asked.pinned.tolist(), asked.positions, strict=True))
            ranked = ranked.with_pinned(pinned, [at[row] for row in pinned.rows.tolist()], asked.request.k)
        slots = self.bundle.manifest.kinds
        columns = {name: part.tolist() for name, part in ranked.parts.items()}
        shares = [
            {name: values[i] for name, values in columns.items() if values[i] or name in slots}
            for i in range(len(ranked.rows))
        ]
        answer = self._described(asked, ranked.rows, ranked.scores, shares)
        return (
            replace(answer, explanation=self._explained(batch, b, asked, ranked)) if asked.request.explain else answer
        )

    def _arranged(self, asked: Asked, ranked: Ranked) -> Ranked:
        """The items to answer, chosen among candidates for diversity and within the limits of rules."""
        if not asked.is_reranked:
            return ranked if len(ranked.rows) <= asked.request.k else ranked.take(np.arange(asked.request.k))
        with metrics.stage("rerank"):
            limits = () if asked.rules is None else asked.rules.limits
            described = [self.state.items.describe(row)[2] for row in ranked.rows.tolist()] if limits else []
            groups = [GroupLimit([d.get(limit.attribute, []) for d in described], limit.most) for limit in limits]
            codes = self.state.codes.take(ranked.rows)
            places = rerank(ranked.scores, codes, asked.request.k, asked.request.diversity, groups)
        return ranked.take(places)

    def _explained(self, batch: ScoringBatch, b: int, asked: Asked, ranked: Ranked) -> Explanation:
        def score(histories: Ragged) -> ScoringBatch:
            return self._batch(self._users(histories), histories, [asked] * len(histories))

        with metrics.stage("explain"):
            own = ranked.scores - ranked.parts.get(_RULES, 0.0) - ranked.parts.get(SECOND_STAGE, 0.0)
            effects = history_effects(asked.known.events, replace(ranked, scores=own), score)
            queries = slot_queries(batch.term.users[b], self.bundle.manifest.code_columns)
            nearest = {}
            if queries:
                hits = self.state.index.search(
                    self.state.queries(np.stack(list(queries.values()))),
                    NEAREST,
                    [asked.excluded] * len(queries),
                    [asked.allowed] * len(queries),
                )
                nearest = {kind: self._nearest(hit.rows, hit.scores) for kind, hit in zip(queries, hits, strict=True)}
        title = self.state.items.describe
        return Explanation(
            [[HistoryEffect(*title(row)[:2], effect) for row, effect in item] for item in effects], nearest
        )

    def _nearest(self, rows: np.ndarray, scores: np.ndarray) -> list[NearestItem]:
        describe = self.state.items.describe
        return [
            NearestItem(*describe(row)[:2], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def _from_popularity(self, asked: Asked) -> Answer:
        rows, counts = self.state.popularity.best(asked.candidates, asked.left(self.state))
        ranked = self._arranged(asked, Ranked(rows, counts, {}))
        if len(asked.pinned):
            pinned = Ranked(asked.pinned, self.state.popularity.of(asked.pinned), {})
            ranked = ranked.with_pinned(pinned, asked.positions, asked.request.k)
        return self._described(asked, ranked.rows, ranked.scores, [{} for _ in ranked.rows])

    def _count_shown(self) -> None:
        self._shown.count(self.state, np.concatenate([*self._answered, np.empty(0, np.int64)]))
        self._answered.clear()

    def _described(
        self, asked: Asked, rows: np.ndarray, scores: np.ndarray, shares: Sequence[dict[str, float]]
    ) -> Answer:
        self._answered.append(rows)
        items = []
        for row, score, part in zip(rows.tolist(), scores.tolist(), shares, strict=True):
            item_id, title, attributes = self.state.items.describe(row)
            items.append(Recommendation(item_id, title, score, part, attributes))
        return Answer(items, self.bundle.model_version, asked.known.fallback, asked.known.skipped)
