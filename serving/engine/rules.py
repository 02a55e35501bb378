"""Rules of an operator on top of the scores: pinned items, score boosts, limits on attribute values."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat, StringConstraints, ValidationError, model_validator

from serving.retrieval.filters import Filter
from setrec.errors import DataError
from setrec.settings import Settings

MAX_RULES, MAX_ITEMS = 50, 1000
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Pin(Settings):
    """An item with a fixed ``position``, counted from 1, independent of its score."""

    item_id: ItemId
    position: int = Field(ge=1, le=1000)


class Boost(Settings):
    """An ``amount`` that is added to the scores of the items that ``filter`` matches and of those in ``items``; a
    negative one buries them. Scores are in the unit of log-probabilities: 1 makes an item e times as likely."""

    amount: FiniteFloat = Field(ge=-1000, le=1000)
    filter: Filter | None = None
    items: tuple[ItemId, ...] = Field(default=(), max_length=MAX_ITEMS)

    @model_validator(mode="after")
    def _names_items(self) -> Boost:
        if self.filter is None and not self.items:
            raise ValueError("a boost needs a filter or items")
        return self


class AttributeLimit(Settings):
    """At most ``most`` items of an answer have the same value of ``attribute``."""

    attribute: str = Field(min_length=1, max_length=200)
    most: int = Field(ge=1, le=1000)


class RuleSet(Settings):
    """Rules applied to an answer. They never add items that the request excludes."""

    pins: tuple[Pin, ...] = Field(default=(), max_length=MAX_RULES)
    boosts: tuple[Boost, ...] = Field(default=(), max_length=MAX_RULES)
    limits: tuple[AttributeLimit, ...] = Field(default=(), max_length=MAX_RULES)

    def packed(self) -> str:
        """Return the rule set as a payload of the change log."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True)

    @classmethod
    def read(cls, payload: str | None) -> RuleSet:
        """Parse a payload of the change log.

        Raises:
            DataError: it is damaged or from another version.
        """
        try:
            return cls.model_validate_json(payload or "")
        except ValidationError as error:
            raise DataError(f"not a rule set ({error.errors()[0]['msg']})") from error
