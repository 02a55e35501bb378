"""What travels over HTTP about what became of an answer."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from serving.api.schemas.recommendations import Id


class FeedbackEvent(BaseModel):
    """A user saw or clicked an item of the answer."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["impression", "click"]
    item_id: Id


class FeedbackBody(BaseModel):
    """What became of one answer; may be sent in parts and repeated."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"answer_id": "0" * 32, "events": [{"type": "click", "item_id": "50"}]}],
        },
    )

    answer_id: Annotated[StrictStr, Field(pattern="^[0-9a-f]{32}$")]
    events: Annotated[list[FeedbackEvent], Field(min_length=1, max_length=1000)]


class FeedbackAnswer(BaseModel):
    """The events are logged, within seconds on disk."""

    accepted: int
