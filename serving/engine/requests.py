"""What is asked of the engine, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.retrieval.filters import Filter
from setrec.errors import SetRecError

FallbackReason = Literal["new_user", "empty_history", "unknown_items", "store_unavailable"]
FallbackSource = Literal["popularity", "bundle_history"]


class RequestError(SetRecError):
    """A request that no catalogue could answer."""


@dataclass(frozen=True)
class Request:
    """What is asked: ``k`` items to follow ``history`` (item ids, oldest first) or a user's history.

    ``exclude_history``: whether items of the history are left out of the answer. Of the rest those are candidates that
    ``filter`` matches, that ``allow`` names, where it is given, and that ``deny`` does not; ids that are no items are
    passed over in both. ``unknown_items``: whether an item of ``history`` that the catalogue does not hold is refused
    or skipped; those of a stored history are always skipped, because a user cannot mend it.
    """

    history: tuple[str, ...] | None = None
    user_id: str | None = None
    k: int = 10
    exclude_history: bool = True
    filter: Filter | None = None
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    unknown_items: Literal["refuse", "skip"] = "refuse"


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
class Fallback:
    """Why an answer is not what was asked for, and where it comes from instead."""

    reason: FallbackReason
    source: FallbackSource


@dataclass(frozen=True)
class Answer:
    """Items, best first, and the version of the model that chose them; ``skipped``: unknown items of the history."""

    items: list[Recommendation]
    model_version: str
    fallback: Fallback | None = None
    skipped: tuple[str, ...] = ()
