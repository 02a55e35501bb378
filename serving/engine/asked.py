"""What a request comes to: the history as rows, what may be answered, and the rules that hold."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from serving.engine.requests import DEFAULT_RULES, Fallback, Request, RequestError
from serving.engine.rules import RuleSet
from serving.engine.state import State
from serving.engine.users import Known
from serving.stores import LiveHistory
from setrec.errors import UnknownItemError
from setrec.ragged import Ragged

_POOL = 100
"""Candidates at least that are re-ranked where diversity or limits are asked for."""


@dataclass(frozen=True)
class Asked:
    """A request worked out: the history, item rows that may not be answered, those that may (``None``: all), the rules
    that hold, and the rows that these pin, with their positions from 0 on. ``pool``: candidates that a second stage
    puts in order."""

    request: Request
    known: Known
    excluded: np.ndarray
    allowed: np.ndarray | None
    rules: RuleSet | None = None
    pinned: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    positions: tuple[int, ...] = ()
    pool: int = 0

    @property
    def is_reranked(self) -> bool:
        """Whether the order is not that of the scores alone."""
        return self.request.diversity > 0 or (self.rules is not None and bool(self.rules.limits))

    @property
    def candidates(self) -> int:
        """How many of the best are wanted."""
        wanted = max(_POOL, 3 * self.request.k) if self.is_reranked else self.request.k
        return max(wanted, self.pool)

    def left(self, state: State) -> np.ndarray:
        """The rows that may be answered, bool (R,)."""
        left = state.index.alive.copy()
        if self.allowed is not None:
            left &= self.allowed
        left[self.excluded] = False
        return left

    def may(self, state: State, rows: np.ndarray) -> np.ndarray:
        """Which of a few ``rows`` may be answered, bool; the same as :meth:`left` says of them."""
        may = state.index.alive[rows] & ~np.isin(rows, self.excluded)
        left: np.ndarray = may if self.allowed is None else may & self.allowed[rows]
        return left


def work_out(state: State, request: Request, live: LiveHistory | None, *, synced: bool) -> Asked:
    """Work out a request. ``live``: what the store holds of its user, ``None`` where that cannot be read; ``synced``:
    whether all erasures are known.

    Raises:
        SetRecError: it cannot be answered.
    """
    if not 0 <= request.diversity <= 1:
        raise RequestError(f"diversity is {request.diversity}; it must be between 0 and 1")
    if (request.history is None) == (request.user_id is None):
        raise RequestError("give either history or user_id, one of the two")
    if request.user_id is None:
        known = _given(state, request)
    elif live is None and not synced:
        # Nobody knows yet whether this user was erased.
        known = Known(fallback=Fallback("store_unavailable", "popularity"))
    else:
        known = state.users.known(request.user_id, live, state.items)
    excluded, _ = state.items.rows(request.deny)
    if request.exclude_history:
        excluded = np.concatenate([known.rows, excluded])
    if len(known.avoided):
        excluded = np.concatenate([known.avoided, excluded])
    if len(state.availability):
        excluded = np.concatenate([excluded, state.availability.unavailable(time.time())])
    allowed = state.allowed(request.filter, request.allow, request.new_only)
    pool = 0 if state.second_stage is None else state.second_stage.reranker.candidates
    return _pinned(state, Asked(request, known, excluded, allowed, _rules(state, request.rules), pool=pool))


def _given(state: State, request: Request) -> Known:
    """The history that a request spells out."""
    if not request.history:
        raise RequestError("the history is empty")
    rows, unknown = state.items.rows(request.history)
    if unknown and request.unknown_items == "refuse":
        raise UnknownItemError(f"unknown item {unknown[0]!r}")
    return Known(Ragged.of([rows], np.int64), unknown, None if len(rows) else Fallback("unknown_items", "popularity"))


def _rules(state: State, name: str | None) -> RuleSet | None:
    rules = None if name is None else state.rules.get(name)
    if rules is None and name not in (None, DEFAULT_RULES):
        raise RequestError(f"there is no rule set '{name}'")
    return rules


def _pinned(state: State, asked: Asked) -> Asked:
    """With the rows that are pinned, which are then no longer searched for; pins of what may not be answered do not
    count."""
    if asked.rules is None or not asked.rules.pins:
        return asked
    at = {state.items.find(pin.item_id): pin.position - 1 for pin in asked.rules.pins}
    rows = np.array([row for row in at if row is not None], dtype=np.int64)
    rows = rows[asked.may(state, rows)]
    positions = tuple(at[row] for row in rows.tolist())
    return replace(asked, excluded=np.concatenate([asked.excluded, rows]), pinned=rows, positions=positions)
