"""Schema of the input tables: the meaning of their columns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from setrec.settings import Settings

ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")
"""Column types of RecBole's atomic files."""


class Schema(Settings):
    """Column names of the two input tables. For RecBole's atomic files give the names without their ``:type``.

    Time is a ``timestamp`` (numbers, ISO 8601 text or dates) or a ``position`` (a number that orders one user's
    interactions and means nothing across users). By default the column ``timestamp`` is used if it exists, else
    ``position``.

    ``time_format`` is the pattern of times in text (``%d/%m/%Y %H:%M``, as for ``strptime``), ``time_unit`` the unit of
    numbers, by default inferred from their size. ``event`` is the column of interaction types, ``session`` that of
    sessions. A field inside another is named by its path (``details.Brand``).

    ``text`` lists the columns of words; the first is the title. ``attributes`` lists categorical columns: a list
    per item, or one value per item, or one string split at ``separators[column]``. By default (None), the types of
    atomic files decide: the first ``token_seq`` is the title, every other ``token`` and ``token_seq`` an attribute
    (``token_seq`` split at blanks); in any other format ``title`` is the only text and there are no attributes.
    ``strip_html`` removes tags and character references from texts.
    """

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str | None = None
    position: str | None = None
    time_format: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    rating: str | None = None
    event: str | None = None
    session: str | None = None
    split: str | None = None
    item_id: str = "item_id"
    text: tuple[str, ...] | None = None
    attributes: tuple[str, ...] | None = None
    separators: dict[str, str] = Field(default_factory=dict)
    strip_html: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Schema:
        if self.timestamp is not None and self.position is not None:
            raise ValueError("give timestamp or position, not both")
        if self.position is not None and (self.time_format is not None or self.time_unit is not None):
            raise ValueError("a position has neither time_format nor time_unit")
        if any(not separator for separator in self.separators.values()):
            raise ValueError("a separator may not be empty")
        if self.attributes is not None and (stray := set(self.separators) - set(self.attributes)):
            raise ValueError(f"separators name columns that are not attributes: {sorted(stray)}")
        return self
