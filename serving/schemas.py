"""What travels over HTTP."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictInt, StrictStr, create_model

_EXAMPLES: list[JsonValue] = [
    {"history": ["50", "181", "174"], "k": 10, "exclude_history": True},
    {"user_id": "196", "k": 5},
]


class RecommendRequest(BaseModel):
    """A history of item ids, oldest first, or the id of a user the bundle knows: exactly one of the two."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": _EXAMPLES})

    history: list[StrictStr] | None = Field(default=None, description="Item ids, oldest first.")
    user_id: StrictStr | None = Field(default=None, description="A user whose history the bundle holds.")
    k: StrictInt = Field(default=10, description="How many items.")
    exclude_history: StrictBool = Field(default=True, description="Leave the items of the history out of the answer.")


class Item(BaseModel):
    """A recommended item. The shares, one per kind of slot, sum to the score."""

    item_id: str
    title: str
    score: float = Field(description="Orders the items of one answer; not comparable across requests.")
    shares: dict[str, float] = Field(description="What each kind of slot contributed to the score.")
    attributes: dict[str, list[str]]


class RecommendResponse(BaseModel):
    """Items, best first; fewer than k only when the catalogue has no more."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    items: list[Item]


class Live(BaseModel):
    """The process answers."""

    status: str


class GraphReady(BaseModel):
    """The graph that is served beside the catalogue."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    nodes: int = Field(description="How many nodes the graph has.")
    tasks: list[str] = Field(description="What the model was trained for.")
    can_ask: bool = Field(description="Whether there is a model that answers questions.")


class Ready(BaseModel):
    """Model and index are loaded and have answered a first request; the details are for tokens that may read."""

    model_config = ConfigDict(protected_namespaces=())

    status: str
    model_version: str | None = None
    items: int | None = None
    users: int | None = None
    retriever: str | None = None
    graph: GraphReady | None = Field(default=None, description="Left out where no graph is served.")


class ErrorDetail(BaseModel):
    """``code`` is for programs, ``message`` one line for people."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail


def error_responses(unknown: str, invalid: str) -> dict[int | str, dict[str, Any]]:
    """What a route may answer but 2xx, for the OpenAPI document: ``unknown`` is its 404, ``invalid`` ends its 422."""
    return {
        400: {"model": ErrorResponse, "description": "The body cannot be read (`bad_request`)."},
        401: {"model": ErrorResponse, "description": "A bearer token is missing or unknown (`unauthorized`)."},
        403: {"model": ErrorResponse, "description": "The token lacks the scope (`forbidden`)."},
        404: {"model": ErrorResponse, "description": unknown},
        413: {"model": ErrorResponse, "description": "The body is too long (`body_too_large`)."},
        422: {"model": ErrorResponse, "description": f"Not JSON (`invalid_json`), {invalid}"},
        429: {"model": ErrorResponse, "description": "Too many requests of this token; see `Retry-After`."},
        431: {"model": ErrorResponse, "description": "Path and headers are too long (`headers_too_large`)."},
        503: {"model": ErrorResponse, "description": "Too many requests are waiting; see `Retry-After`."},
    }


def limited_request(max_history: int, max_k: int) -> type[RecommendRequest]:
    """``RecommendRequest`` with limits, so that the OpenAPI document states them."""
    fields: dict[str, Any] = {
        "history": (
            Annotated[list[StrictStr], Field(min_length=1, max_length=max_history)] | None,
            Field(default=None, description="Item ids, oldest first."),
        ),
        "k": (
            Annotated[StrictInt, Field(ge=1, le=max_k)],
            Field(default=min(10, max_k), description="How many items."),
        ),
    }
    return create_model("RecommendRequest", __base__=RecommendRequest, __doc__=RecommendRequest.__doc__, **fields)
