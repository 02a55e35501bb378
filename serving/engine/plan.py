"""Plans of requests: the history as rows, the allowed items, and the rules."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from serving.engine.requests import DEFAULT_RULES, Fallback, Request, RequestError
from serving.engine.rules import RuleSet
from serving.engine.state import State
from serving.engine.users import History
from serving.stores import LiveHistory
from setrec.errors import UnknownItemError
from setrec.ragged import Ragged

_POOL = 100
"""Minimum number of candidates re-ranked for diversity or limits."""


@dataclass(frozen=True)
class RequestPlan:
    """The plan of a request: the history, the excluded and the allowed item rows (``None``: all), the rules, and the
    rows pinned by them, with positions from 0. ``pool``: number of candidates for a second stage."""

    request: Request
    history: History
    excluded: np.ndarray
    allowed: np.ndarray | None
    rules: RuleSet | None = None
    pinned: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    positions: tuple[int, ...] = ()
    pool: int = 0

    @property
    def is_reranked(self) -> bool:
        """Whether the order depends on more than the scores."""
        return self.request.diversity > 0 or (self.rules is not None and bool(self.rules.limits))

    @property
    def candidates(self) -> int:
        """Number of candidates to retrieve."""
        wanted = max(_POOL, 3 * self.request.k) if self.is_reranked else self.request.k
        return max(wanted, self.pool)

    @property
    def cached_user(self) -> str | None:
        """The user whose history may be cached, ``None`` if it is explicit or not the current one."""
        return self.request.user_id if self.request.live else None

    def left(self, state: State) -> np.ndarray:
        """Return the mask of rows that may be answered, bool (R,)."""
        left = state.index.alive.copy()
        if self.allowed is not None:
            left &= self.allowed
        left[self.excluded] = False
        return left

    def may(self, state: State, rows: np.ndarray) -> np.ndarray:
        """Return which of a few ``rows`` may be answered, bool, consistent with :meth:`left`."""
        may = state.index.alive[rows] & ~np.isin(rows, self.excluded)
        left: np.ndarray = may if self.allowed is None else may & self.allowed[rows]
        return left


def make_plan(state: State, request: Request, live: LiveHistory | None, *, synced: bool) -> RequestPlan:
    """Validate a request and return its plan. ``live``: the live history of its user, ``None`` if the store cannot be
    read; ``synced``: whether all erasures are known.

    Raises:
        SetRecError: the request cannot be answered.
    """
    if not 0 <= request.diversity <= 1:
        raise RequestError(f"diversity is {request.diversity}; it must be between 0 and 1")
    if (request.history is None) == (request.user_id is None):
        raise RequestError("give exactly one of history and user_id")
    if request.user_id is None:
        history = _explicit_history(state, request)
    elif live is None and not synced:
        # It is not yet known whether this user was erased.
        history = History(fallback=Fallback("store_unavailable", "popularity"))
    else:
        history = state.users.history(request.user_id, live, state.items)
    excluded, _ = state.items.rows(request.deny)
    if request.exclude_history:
        excluded = np.concatenate([history.rows, excluded])
    if len(history.avoided):
        excluded = np.concatenate([history.avoided, excluded])
    if len(state.availability):
        excluded = np.concatenate([excluded, state.availability.unavailable(time.time())])
    allowed = state.allowed(request.filter, request.allow, request.new_only)
    pool = 0 if state.second_stage is None else state.second_stage.reranker.candidates
    return _pinned(state, RequestPlan(request, history, excluded, allowed, _rules(state, request.rules), pool=pool))


def _explicit_history(state: State, request: Request) -> History:
    """Return the history given in a request."""
    if not request.history:
        raise RequestError("the history is empty")
    rows, unknown = state.items.rows(request.history)
    if unknown and request.unknown_items == "refuse":
        raise UnknownItemError(f"unknown item {unknown[0]!r}")
    return History(Ragged.of([rows], np.int64), unknown, None if len(rows) else Fallback("unknown_items", "popularity"))


def _rules(state: State, name: str | None) -> RuleSet | None:
    rules = None if name is None else state.rules.get(name)
    if rules is None and name not in (None, DEFAULT_RULES):
        raise RequestError(f"there is no rule set '{name}'")
    return rules


def _pinned(state: State, plan: RequestPlan) -> RequestPlan:
    """Return the plan with pinned rows, which are excluded from the search; pins of disallowed items are ignored."""
    if plan.rules is None or not plan.rules.pins:
        return plan
    at = {state.items.find(pin.item_id): pin.position - 1 for pin in plan.rules.pins}
    rows = np.array([row for row in at if row is not None], dtype=np.int64)
    rows = rows[plan.may(state, rows)]
    positions = tuple(at[row] for row in rows.tolist())
    return replace(plan, excluded=np.concatenate([plan.excluded, rows]), pinned=rows, positions=positions)
