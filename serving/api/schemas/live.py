"""What travels over HTTP about live state: events, users' histories and items."""

import time
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat, StrictStr, create_model, model_validator

from serving.api.schemas.recommendations import ID_PATTERN, MAX_ID, Id
from serving.runtime.settings import EventType

_CLOCK_SKEW = 300.0  # seconds that a caller's clock may be ahead
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
    """A user met an item."""

    model_config = ConfigDict(extra="forbid")

    user_id: Id
    item_id: Id = Field(description="May be an item nobody knows yet; it counts from when it is put.")
    time: Time | None = Field(
        default=None,
        description="Seconds since 1970, UTC, at most five minutes ahead; left out: now.",
        examples=[1.7e9],
    )
    key: Key | None = Field(
        default=None, description="Names the event: a second one of the same user and key is not taken in again."
    )
    type: EventType | None = Field(
        default=None,
        description="What the user did; the weights of training and `event_weights` say what it counts. A `dislike` "
        "keeps the item out of answers and lowers what is like it, and all other types are read as history.",
        examples=["purchase"],
    )


class EventsBody(BaseModel):
    """Events in any order; all of them are kept, or none."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"events": [{"user_id": "196", "item_id": "242", "key": "click-1"}]}]},
    )

    events: list[EventBody]


def limited_events(most: int) -> type[EventsBody]:
    """``EventsBody`` with a limit, so that the OpenAPI document states it."""
    fields: dict[str, Any] = {"events": (Annotated[list[EventBody], Field(min_length=1, max_length=most)], ...)}
    return create_model("EventsBody", __base__=EventsBody, __doc__=EventsBody.__doc__, **fields)


class EventsAnswer(BaseModel):
    """The events are on disk: they survive a crash at any later moment."""

    accepted: int = Field(description="How many were new.")
    duplicates: int = Field(description="How many had been taken in before, under the same user and key.")


class PastItem(BaseModel):
    """An item of a history; what a bundle was trained on has no time of its own here."""

    item_id: str
    time: float | None = Field(description="Seconds since 1970, UTC; `null` for what the bundle holds.")
    source: Literal["live", "bundle"]
    type: str | None = Field(description="What the user did, where the event told.")


class HistoryAnswer(BaseModel):
    """A page of a history, latest first; empty for a user nobody knows."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    user_id: str
    items: list[PastItem]
    next: str | None = Field(description="Give it as `before` to get the next page; `null` on the last.")


class ErasedAnswer(BaseModel):
    """The user's events are gone, and what any bundle knows of them, now or later, is hidden."""

    user_id: str
    events: int = Field(description="How many events were removed.")


class ItemBody(BaseModel):
    """An item as its owner describes it. The text for the model is made of these as it was for the trained items."""

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
    ] = Field(default={}, description="For filters, and for the text where the trained items have them too.")
    available_from: Moment | None = Field(
        default=None, description="Not answered before; seconds since 1970, UTC.", examples=[1767225600.0]
    )
    available_until: Moment | None = Field(default=None, description="Not answered from then on.")

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> "ItemBody":
        start, end = self.available_from, self.available_until
        if start is not None and end is not None and start >= end:
            raise ValueError("available_until is not after available_from")
        return self


class PutAnswer(BaseModel):
    """The item is recommended by this replica, and by all others within a second."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    item_id: str
    created: bool = Field(description="Whether there was no such item before.")


class RemovedAnswer(BaseModel):
    """The item is no longer recommended by this replica, nor within a second by any other."""

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
    source: Literal["bundle", "live"] = Field(description="Where its description comes from.")
    trained: bool = Field(description="Whether the model learned it from users, not from its text alone.")
