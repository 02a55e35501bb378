"""Schemas of feedback on answers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from serving.api.schemas.recommendations import Id


class FeedbackEvent(BaseModel):
    """An impression or click of an item in an answer."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["impression", "click"]
    item_id: Id


class FeedbackBody(BaseModel):
    """Feedback on one answer; may be sent in parts and repeated."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"answer_id": "0" * 32, "events": [{"type": "click", "item_id": "50"}]}],
        },
    )

    answer_id: Annotated[StrictStr, Field(pattern="^[0-9a-f]{32}$")]
    events: Annotated[list[FeedbackEvent], Field(min_length=1, max_length=1000)]


class FeedbackAnswer(BaseModel):
    """Confirmation: the events are logged, and on disk within seconds."""

    accepted: int
