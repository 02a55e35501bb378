"""The engine, from a history to ranked items, without HTTP and Ray, for separate tests and benchmarks."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from serving.bundle.reader import Bundle
from serving.engine.explanation import NEAREST, history_effects, slot_queries
from serving.engine.items.coder import ItemCoder, TextEncode
from serving.engine.items.title_search import TitleSearch
from serving.engine.live_audit import Answered, Audits
from serving.engine.plan import RequestPlan, make_plan
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
from serving.engine.user_codes import UserCodes
from serving.engine.users import DEFAULT_WEIGHTS
from serving.stores import Change, LiveHistory, LiveStore, StoreError
from serving.stores.item_changes import ItemChange
from serving.telemetry import logs, metrics
from setrec.errors import SetRecError
from setrec.ragged import Ragged
from setrec.scoring.diversity import GroupLimit, rerank

__all__ = ["Answer", "Engine", "Recommendation", "Request", "RequestError"]

_CELLS = 1 << 23
"""Number of scores in memory at a time when all items are scored, 32 MB."""
_SEEN = 500  # number of latest live items that are excluded from an answer
_RULES = "rules"
"""Name of the score's term for boosts."""


class Engine:
    """Answers batches of requests from a bundle and the live state: one read of the store, one pass of the model, one
    computation of component entries per batch. Thread-safe."""

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
        user_cache_bytes: int = 0,
    ) -> None:
        """``max_k``: the largest k allowed. ``threads``: for torch, in the whole process; ``None`` leaves it unchanged.

        ``encode`` replaces the bundle's own text encoder. With ``replay`` the changes in ``store`` are applied
        immediately, or later by :meth:`catch_up` if the store cannot be read. ``event_weights``: weights by type of
        event, in place of the bundle's. ``user_cache_bytes``: see :class:`serving.engine.user_codes.UserCodes`.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle, self.store = bundle, store
        self.max_k = min(max_k, len(bundle.catalog))
        self.coder = ItemCoder(bundle, encode)
        self.user_codes = UserCodes(bundle, user_cache_bytes)
        self.applied = 0
        self.synced = store is None
        self.state = State(bundle, {**DEFAULT_WEIGHTS, **bundle.manifest.event_weights, **(event_weights or {})})
        self._shown, self._answered = ShownItems(len(bundle.catalog)), list[np.ndarray]()
        self.lock = threading.Lock()  # protects all uses of ``state`` by requests, and all changes to it
        self._applying = threading.Lock()  # serialises changes
        self.recommend([Request(history=(bundle.catalog.item_ids[0],), k=1)])  # the first pass is a slow one
        if store is not None:
            self.coder.warm()
            if replay:
                self._try_to_catch_up()

    def recommend(self, requests: Sequence[Request], auditor: Audits | None = None) -> list[Answer | SetRecError]:
        """Return one answer or error per request; an invalid request does not affect the others.

        ``auditor``: receives the answers from an approximate index.
        """
        live = self._live_histories(requests)
        results: dict[int, Answer | SetRecError] = {}
        plans: dict[int, RequestPlan] = {}
        with self.lock:
            for b, request in enumerate(requests):
                try:
                    plans[b] = self._plan(request, live)
                except SetRecError as error:
                    results[b] = error
            results |= self._from_model({b: p for b, p in plans.items() if len(p.history.rows)}, auditor)
            results |= {b: self._from_popularity(p) for b, p in plans.items() if not len(p.history.rows)}
            self._count_shown()
        for p in plans.values():
            if p.history.fallback is not None:
                metrics.FALLBACKS.labels(p.history.fallback.reason).inc()
        return [results[b] for b in range(len(requests))]

    def retire(self) -> None:
        """Free the cache of users; the engine still answers."""
        with self.lock:
            self.user_codes.close()

    def recommend_one(self, request: Request) -> Answer:
        """Return the answer to a single request.

        Raises:
            RequestError: k is out of range, the history is empty, or not exactly one of history and user is given.
            UnknownItemError: the history contains an unknown item, and unknown items are refused.
            FilterError: the filter names an attribute that no item has.
        """
        result = self.recommend([request])[0]
        if isinstance(result, SetRecError):
            raise result
        return result

    @property
    def terms(self) -> tuple[str, ...]:
        """Valid names of factors: slot kinds of the model and components."""
        return (*self.bundle.manifest.kinds, *self.bundle.components)

    def similar(self, item_id: str, k: int = 10, by: str = "all") -> Answer:
        """Return the ``k`` items nearest to one, including live ones: by the whole score of a history of this item only
        (``all``), by the model's part of it (``model``), by one slot kind or by one component.

        Raises:
            UnknownItemError: the item is unknown. RequestError: ``by`` is unknown, or k is out of range.
        """
        request = Request(history=(item_id,), k=k, rules=None)
        if by == "all":
            return self.recommend_one(request)
        with self.lock:
            plan = self._plan(request, {})
            by_one = self._by_component if by in self.bundle.components else self._by_slots
            rows, scores = by_one(plan, by)
            answer = self._described(plan, rows, scores, [{by: score} for score in scores.tolist()])
            self._count_shown()
        return answer

    def _by_component(self, plan: RequestPlan, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and values of the best entries of one component."""
        zeros = np.zeros((1, self.bundle.codes.shape[1]), np.float32)
        places, values = self.state.batch(zeros, plan.history.events).entries[name]
        may = plan.may(self.state, places.values)
        rows, values = places.values[may], values[may].astype(np.float64)
        best = np.lexsort((rows, -values))[: plan.request.k]
        return rows[best], values[best]

    def _by_slots(self, plan: RequestPlan, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and scores of the items nearest to the model's answer: in all slots, or in those of one kind."""
        user = self.user_codes.of(plan.history.events, self.state.codes)[0]
        queries = slot_queries(user, self.bundle.manifest.code_columns) | {"model": user}
        if name not in queries:
            raise RequestError(f"similar by '{name}' is unknown; known are all, model, {', '.join(self.terms)}")
        (hits,) = self.state.index.search(self.state.queries(queries[name][None]), plan.request.k, [plan.excluded])
        return hits.rows, hits.scores

    def search(self, text: str, limit: int) -> list[tuple[str, str, dict[str, list[str]]]]:
        """Return id, title and attributes of up to ``limit`` items whose titles contain ``text``."""
        titles = self._titles
        with self.lock:
            return [self.state.items.describe(row) for row in titles.find(self.state, text, limit)]

    @cached_property
    def _titles(self) -> TitleSearch:
        return TitleSearch(self.bundle.catalog.titles, self.bundle.popularity)

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply entries of the store's change log, in order; entries applied before are skipped."""
        with self._applying:
            for change in changes:
                if change.seq > self.applied:
                    self._apply(change)
                    self.applied = change.seq

    def catch_up(self) -> int:
        """Apply all logged changes of the store, and return the last sequence number; 0 without a store.

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
            # An invalid entry must not prevent later ones from being applied.
            logs.warning("a live change is skipped", seq=change.seq, error=str(error))
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
                self.user_codes.erase(change.id)
        if self.state.is_wasteful:
            # Takes seconds for a large catalogue. Only changes write to the state, one at a time: requests continue.
            compact = self.state.compact()
            with self.lock:
                self.state = compact
                self.user_codes.clear()

    def _live_histories(self, requests: Sequence[Request]) -> Mapping[str, LiveHistory | None]:
        """Return the live histories of the requests' users, ``None`` for all if the store cannot be read."""
        users = list(dict.fromkeys(r.user_id for r in requests if r.user_id is not None and r.live))
        if self.store is None or not users:
            return dict.fromkeys(users, LiveHistory())
        with metrics.stage("read_history"):
            try:
                found = self.store.latest(users, max(self.bundle.model.max_items, _SEEN))
            except StoreError:
                return dict.fromkeys(users)
        return dict(zip(users, found, strict=True))

    def _plan(self, request: Request, live: Mapping[str, LiveHistory | None]) -> RequestPlan:
        if not 1 <= request.k <= self.max_k:
            raise RequestError(f"k is {request.k}; it must be between 1 and {self.max_k}")
        for name in request.factors:
            if name not in self.terms:
                raise RequestError(f"there is no slot kind or component '{name}'; known are {', '.join(self.terms)}")
        own = None if request.user_id is None else live[request.user_id] if request.live else LiveHistory()
        return make_plan(self.state, request, own, synced=self.synced)

    def _from_model(self, plans: Mapping[int, RequestPlan], auditor: Audits | None) -> dict[int, Answer]:
        every = list(plans.items())
        is_exact = self.bundle.retriever.kind == "exact"
        step = max(1, _CELLS // len(self.state.items)) if is_exact else max(1, len(every))
        found: dict[int, Answer] = {}
        for start in range(0, len(every), step):
            some = [p for _, p in every[start : start + step]]
            histories = Ragged.joined([p.history.events for p in some])
            with metrics.stage("generate"):
                users = self.user_codes.of(histories, self.state.codes, [p.cached_user for p in some])
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

    def _batch(self, users: np.ndarray, histories: Ragged, plans: Sequence[RequestPlan]) -> ScoringBatch:
        """Return a scoring batch of histories, one per request, with its factors."""
        batch = self.state.batch(users, histories)
        return batch.scaled([p.request.factors for p in plans]) if any(p.request.factors for p in plans) else batch

    def _boosted(self, batch: ScoringBatch, plans: Sequence[RequestPlan]) -> ScoringBatch:
        """Return the batch with the boosts of each request's rules."""
        boosts = [() if p.rules is None else p.rules.boosts for p in plans]
        if not any(boosts):
            return batch
        found = [self.state.boosted(own) for own in boosts]
        return batch.adjusted(_RULES, [rows for rows, _ in found], [amounts for _, amounts in found])

    def _dense(self, batch: ScoringBatch, plans: Sequence[RequestPlan]) -> list[Ranked]:
        return batch.dense([p.candidates for p in plans], [p.left(self.state) for p in plans])

    def _from_index(self, batch: ScoringBatch, plans: Sequence[RequestPlan]) -> list[Ranked]:
        """Return the best of the index's candidates and of the rows to which components and the history add."""
        additions, excluded = [], []
        for p, (rows, added) in zip(plans, batch.additions(), strict=True):
            may = p.may(self.state, rows)
            rows, added = rows[may], added[may]
            additions.append((rows, added))
            # Rows with lowered scores are excluded from the search: they would displace others.
            excluded.append(np.concatenate([p.excluded, rows[added < 0]]))
        ks = [p.candidates for p in plans]
        hits = self.state.index.search(self.state.queries(batch.term.users), ks, excluded, [p.allowed for p in plans])
        candidates = [batch.candidates(b, k, hits[b], *additions[b]) for b, k in enumerate(ks)]
        return batch.ranked(candidates, ks)

    def _offer(self, auditor: Audits, batch: ScoringBatch, b: int, plan: RequestPlan, ranked: Ranked) -> None:
        if auditor.draws(self.bundle):
            alone, left, k = batch.only(b), plan.left(self.state), plan.candidates
            auditor.offer(Answered(self.bundle, lambda: alone.dense([k], [left])[0].scores, ranked.scores))

    def _answer(self, batch: ScoringBatch, b: int, plan: RequestPlan, ranked: Ranked) -> Answer:
        if self.state.second_stage is not None:
            with metrics.stage("second_stage"):
                ranked = self.state.second_stage.ordered(batch.only(b), ranked, frozenset(self.bundle.components))
        ranked = self._arranged(plan, ranked)
        if len(plan.pinned):
            (pinned,) = batch.only(b).ranked([plan.pinned], [len(plan.pinned)])
            at = dict(zip(plan.pinned.tolist(), plan.positions, strict=True))
            ranked = ranked.with_pinned(pinned, [at[row] for row in pinned.rows.tolist()], plan.request.k)
        slots = self.bundle.manifest.kinds
        columns = {name: part.tolist() for name, part in ranked.parts.items()}
        shares = [
            {name: values[i] for name, values in columns.items() if values[i] or name in slots}
            for i in range(len(ranked.rows))
        ]
        answer = self._described(plan, ranked.rows, ranked.scores, shares)
        return replace(answer, explanation=self._explained(batch, b, plan, ranked)) if plan.request.explain else answer

    def _arranged(self, plan: RequestPlan, ranked: Ranked) -> Ranked:
        """Choose the items to answer among the candidates, for diversity and within the limits of rules."""
        if not plan.is_reranked:
            return ranked if len(ranked.rows) <= plan.request.k else ranked.take(np.arange(plan.request.k))
        with metrics.stage("rerank"):
            limits = () if plan.rules is None else plan.rules.limits
            described = [self.state.items.describe(row)[2] for row in ranked.rows.tolist()] if limits else []
            groups = [GroupLimit([d.get(limit.attribute, []) for d in described], limit.most) for limit in limits]
            codes = self.state.codes.take(ranked.rows)
            places = rerank(ranked.scores, codes, plan.request.k, plan.request.diversity, groups)
        return ranked.take(places)

    def _explained(self, batch: ScoringBatch, b: int, plan: RequestPlan, ranked: Ranked) -> Explanation:
        def score(histories: Ragged) -> ScoringBatch:
            users = self.user_codes.of(histories, self.state.codes)
            return self._batch(users, histories, [plan] * len(histories))

        with metrics.stage("explain"):
            own = ranked.scores - ranked.parts.get(_RULES, 0.0) - ranked.parts.get(SECOND_STAGE, 0.0)
            effects = history_effects(plan.history.events, replace(ranked, scores=own), score)
            queries = slot_queries(batch.term.users[b], self.bundle.manifest.code_columns)
            nearest = {}
            if queries:
                hits = self.state.index.search(
                    self.state.queries(np.stack(list(queries.values()))),
                    NEAREST,
                    [plan.excluded] * len(queries),
                    [plan.allowed] * len(queries),
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

    def _from_popularity(self, plan: RequestPlan) -> Answer:
        rows, counts = self.state.popularity.best(plan.candidates, plan.left(self.state))
        ranked = self._arranged(plan, Ranked(rows, counts, {}))
        if len(plan.pinned):
            pinned = Ranked(plan.pinned, self.state.popularity.of(plan.pinned), {})
            ranked = ranked.with_pinned(pinned, plan.positions, plan.request.k)
        return self._described(plan, ranked.rows, ranked.scores, [{} for _ in ranked.rows])

    def _count_shown(self) -> None:
        self._shown.count(self.state, np.concatenate([*self._answered, np.empty(0, np.int64)]))
        self._answered.clear()

    def _described(
        self, plan: RequestPlan, rows: np.ndarray, scores: np.ndarray, shares: Sequence[dict[str, float]]
    ) -> Answer:
        self._answered.append(rows)
        items = []
        for row, score, part in zip(rows.tolist(), scores.tolist(), shares, strict=True):
            item_id, title, attributes = self.state.items.describe(row)
            items.append(Recommendation(item_id, title, score, part, attributes))
        return Answer(items, self.bundle.model_version, plan.history.fallback, plan.history.skipped)
