"""Requests to the engine, and its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from serving.retrieval.filters import Filter
from setrec.errors import SetRecError

FallbackReason = Literal["new_user", "empty_history", "unknown_items", "store_unavailable"]
FallbackSource = Literal["popularity", "bundle_history"]
DEFAULT_RULES = "default"


class RequestError(SetRecError):
    """An invalid request, independent of the catalogue."""


@dataclass(frozen=True)
class Request:
    """A request for ``k`` items that follow ``history`` (item ids, oldest first) or a user's history.

    ``exclude_history``: whether items of the history are excluded from the answer. Candidates are the other items that
    match ``filter``, are in ``allow``, if given, and not in ``deny``; both ignore unknown ids. ``unknown_items``:
    whether an unknown item of ``history`` is refused or skipped; those of a stored history are always skipped, because
    callers cannot correct it. ``new_only``: whether only items without training interactions are candidates.

    ``factors``: factors of the weights of slot kinds and components, 1 by default. ``diversity`` from 0 to 1 re-ranks
    the best candidates; see :mod:`setrec.scoring.diversity`. ``rules``: name of a rule set, ``None`` for none;
    ``default`` need not exist. ``explain``: whether to explain each item. ``live``: whether the user's live events
    count in addition to the bundle's history.
    """

    history: tuple[str, ...] | None = None
    user_id: str | None = None
    k: int = 10
    exclude_history: bool = True
    filter: Filter | None = None
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    unknown_items: Literal["refuse", "skip"] = "refuse"
    new_only: bool = False
    factors: Mapping[str, float] = field(default_factory=dict)
    diversity: float = 0.0
    rules: str | None = DEFAULT_RULES
    explain: bool = False
    live: bool = True


@dataclass(frozen=True)
class Recommendation:
    """An item, its score and what each kind of slot and each component contributed; the shares sum to the score.

    Scores order the items of one answer; a constant per user is left out, so they are not comparable across users. In a
    popularity fallback, the score is the number of training interactions and there are no shares.
    """

    item_id: str
    title: str
    score: float
    shares: dict[str, float]
    attributes: dict[str, list[str]]


@dataclass(frozen=True)
class HistoryEffect:
    """An item of the history, and the decrease of an answered item's score without it."""

    item_id: str
    title: str
    effect: float


@dataclass(frozen=True)
class NearestItem:
    """An item recommended by one slot alone, with the inner product."""

    item_id: str
    title: str
    score: float


@dataclass(frozen=True)
class Explanation:
    """Explanation of an answer. ``effects``: for each item, the items of the history that raise its score the most.
    ``slots``: for each slot kind, the items with the largest inner product with the model's answer."""

    effects: list[list[HistoryEffect]]
    slots: dict[str, list[NearestItem]]


@dataclass(frozen=True)
class Fallback:
    """The reason for a fallback, and the source of the answer."""

    reason: FallbackReason
    source: FallbackSource


@dataclass(frozen=True)
class Answer:
    """Items, best first, and the version of the model; ``skipped``: unknown items of the history; ``explanation``: if
    requested and the model answers."""

    items: list[Recommendation]
    model_version: str
    fallback: Fallback | None = None
    skipped: tuple[str, ...] = ()
    explanation: Explanation | None = None
