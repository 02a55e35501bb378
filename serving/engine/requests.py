"""What is asked of the engine, and what it answers."""

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
    """A request that no catalogue could answer."""


@dataclass(frozen=True)
class Request:
    """What is asked: ``k`` items to follow ``history`` (item ids, oldest first) or a user's history.

    ``exclude_history``: whether items of the history are left out of the answer. Of the rest those are candidates that
    ``filter`` matches, that ``allow`` names, where it is given, and that ``deny`` does not; ids that are no items are
    passed over in both. ``unknown_items``: whether an item of ``history`` that the catalogue does not hold is refused
    or skipped; those of a stored history are always skipped, because a user cannot mend it. ``new_only``: whether only
    items without training interactions are candidates.

    ``factors``: what the weight of a slot kind or component is multiplied by, 1 where it is not named. ``diversity``
    from 0 to 1 re-ranks the best candidates, see :mod:`setrec.scoring.diversity`. ``rules``: name of a rule set,
    ``None`` for none; the one named ``default`` need not exist. ``explain``: whether to say why each item is answered.
    ``live``: whether what the store holds of the user counts beside the bundle's history.
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

    Scores order the items of one answer; a constant of the user is left out, so they do not compare across users.
    Where popularity answers, the score is the number of training interactions and there are no shares.
    """

    item_id: str
    title: str
    score: float
    shares: dict[str, float]
    attributes: dict[str, list[str]]


@dataclass(frozen=True)
class HistoryEffect:
    """An item of the history, and by how much the score of an answered item falls when it is left out."""

    item_id: str
    title: str
    effect: float


@dataclass(frozen=True)
class NearestItem:
    """An item that a slot's answer alone would give, with the inner product."""

    item_id: str
    title: str
    score: float


@dataclass(frozen=True)
class Explanation:
    """Why items are answered. ``effects``: of each item the few items of the history that raise its score the most.
    ``slots``: of each slot kind the catalogue's items of largest inner product with what the model answers there."""

    effects: list[list[HistoryEffect]]
    slots: dict[str, list[NearestItem]]


@dataclass(frozen=True)
class Fallback:
    """Why an answer is not what was asked for, and where it comes from instead."""

    reason: FallbackReason
    source: FallbackSource


@dataclass(frozen=True)
class Answer:
    """Items, best first, and the version of the model that chose them; ``skipped``: unknown items of the history,
    ``explanation``: where one is asked for and the model answers."""

    items: list[Recommendation]
    model_version: str
    fallback: Fallback | None = None
    skipped: tuple[str, ...] = ()
    explanation: Explanation | None = None
