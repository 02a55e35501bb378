"""Schemas of live state: events, users' histories and items."""

import time
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat, StrictStr, create_model, model_validator

from serving.api.schemas.recommendations import ID_PATTERN, MAX_ID, Id
from serving.runtime.settings import EventType

_CLOCK_SKEW = 300.0  # maximum seconds by which a caller's clock may be ahead
MAX_TITLE, MAX_TEXT, MAX_ATTRIBUTES, MAX_VALUES = 500, 10_000, 32, 64

PathId = Annotated[str, Path(min_length=1, max_length=MAX_ID, pattern=ID_PATTERN)]
Key = Annotated[StrictStr, Field(min_length=1, max_length=128, pattern=ID_PATTERN)]
Name = Annotated[StrictStr, Field(min_length=1, max_length=200, pattern=ID_PATTERN)]


def _not_ahead(seconds: float) -> float:
    if seconds > time.time() + _CLOCK_SKEW:
        raise ValueError("is in the future")
    return seconds


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text


Moment = Annotated[StrictFloat, Field(ge=0, le=1e11, allow_inf_nan=False)]
Time = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False), AfterValidator(_not_ahead)]


class EventBody(BaseModel):
    """An event: a user interacted with an item."""

    model_config = ConfigDict(extra="forbid")

    user_id: Id
    item_id: Id = Field(description="May be unknown; the event counts once the item is added.")
    time: Time | None = Field(
        default=None,
        description="Seconds since 1970, UTC, at most five minutes ahead; by default now.",
        examples=[1.7e9],
    )
    key: Key | None = Field(
        default=None, description="Key of the event: a second one with the same user and key is ignored."
    )
    type: EventType | None = Field(
        default=None,
        description="Type of the event; its weight is that of training or of `event_weights`. A `dislike` "
        "excludes the item from answers and lowers similar items; all other types are read as history.",
        examples=["purchase"],
    )


class EventsBody(BaseModel):
    """Events in any order; either all of them are stored, or none."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"events": [{"user_id": "196", "item_id": "242", "key": "click-1"}]}]},
    )

    events: list[EventBody]


def limited_events(most: int) -> type[EventsBody]:
    """Return ``EventsBody`` with a limit, so that the OpenAPI document includes it."""
    fields: dict[str, Any] = {"events": (Annotated[list[EventBody], Field(min_length=1, max_length=most)], ...)}
    return create_model("EventsBody", __base__=EventsBody, __doc__=EventsBody.__doc__, **fields)


class EventsAnswer(BaseModel):
    """Confirmation: the events are on disk and survive any later crash."""

    accepted: int = Field(description="Number of new events.")
    duplicates: int = Field(description="Number of events stored before with the same user and key.")


class PastItem(BaseModel):
    """An item of a history; items from a bundle have no time."""

    item_id: str
    time: float | None = Field(description="Seconds since 1970, UTC; `null` for items from the bundle.")
    source: Literal["live", "bundle"]
    type: str | None = Field(description="Type of the event, if it has one.")


class HistoryAnswer(BaseModel):
    """A page of a history, latest first; empty for an unknown user."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    user_id: str
    items: list[PastItem]
    next: str | None = Field(description="Value of `before` for the next page; `null` on the last.")


class ErasedAnswer(BaseModel):
    """Confirmation: the user's events are deleted, and their histories in all bundles, now or later, are hidden."""

    user_id: str
    events: int = Field(description="Number of deleted events.")


class ItemBody(BaseModel):
    """Description of an item. The text for the model is composed of these fields as for the trained items."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"title": "Toy Story", "attributes": {"release_year": ["1995"], "class": ["Animation", "Comedy"]}}
            ]
        },
    )

    title: Annotated[StrictStr, Field(min_length=1, max_length=MAX_TITLE), AfterValidator(_not_blank)]
    text: Annotated[StrictStr, Field(max_length=MAX_TEXT)] = Field(default="", description="Further words.")
    attributes: Annotated[
        dict[Name, Annotated[list[Name], Field(max_length=MAX_VALUES)]], Field(max_length=MAX_ATTRIBUTES)
    ] = Field(default={}, description="For filters, and for the text if the trained items have them too.")
    available_from: Moment | None = Field(
        default=None, description="Start of availability; seconds since 1970, UTC.", examples=[1767225600.0]
    )
    available_until: Moment | None = Field(default=None, description="End of availability; seconds since 1970, UTC.")

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> "ItemBody":
        start, end = self.available_from, self.available_until
        if start is not None and end is not None and start >= end:
            raise ValueError("available_until is not after available_from")
        return self


class PutAnswer(BaseModel):
    """Confirmation: this replica recommends the item, and all others do within a second."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    item_id: str
    created: bool = Field(description="Whether the item is new.")


class RemovedAnswer(BaseModel):
    """Confirmation: this replica no longer recommends the item, and all others stop within a second."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    item_id: str


class ItemAnswer(BaseModel):
    """An item that may be recommended."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    item_id: str
    title: str
    attributes: dict[str, list[str]]
    source: Literal["bundle", "live"] = Field(description="Source of the description.")
    trained: bool = Field(
        description="Whether the item has training interactions, so that the model does not depend on its text alone."
    )
