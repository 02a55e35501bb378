"""Schemas of recommendations, probes and errors. Events, users and items: ``serving.api.schemas.live``."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictInt, StrictStr, create_model

from serving.engine.requests import DEFAULT_RULES, FallbackReason, FallbackSource
from serving.retrieval.filters import Filter

MAX_ID = 256
# No control characters, because ids appear in terminals and logs. Nor "." and "..", which clients remove from URLs:
# such a user could not be erased.
ID_PATTERN = r"^([^\x00-\x1f\x7f.]|\.[^\x00-\x1f\x7f.]|\.\.[^\x00-\x1f\x7f])[^\x00-\x1f\x7f]*$"
Id = Annotated[StrictStr, Field(min_length=1, max_length=MAX_ID, pattern=ID_PATTERN)]

_EXAMPLES: list[JsonValue] = [
    {"history": ["50", "181", "174"], "k": 10, "exclude_history": True},
    {"user_id": "196", "k": 5, "filter": {"attribute": "class", "equals": "Comedy"}, "deny": ["50"]},
]


class RecommendRequest(BaseModel):
    """A history of item ids, oldest first, or the id of a user: exactly one of the two."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": _EXAMPLES})

    history: list[Id] | None = Field(default=None, description="Item ids, oldest first.")
    user_id: Id | None = Field(
        default=None,
        description="A user: the bundle's history, then the events since. Unknown users get popular items, "
        "as `fallback` states.",
    )
    k: StrictInt = Field(default=10, description="Number of items.")
    exclude_history: StrictBool = Field(default=True, description="Exclude the items of the history from the answer.")
    filter: Filter | None = Field(default=None, description="Return only items whose attributes match.")
    allow: list[Id] | None = Field(default=None, description="Return only these items; unknown ids are ignored.")
    deny: list[Id] = Field(default=[], description="Exclude these items from the answer.")
    unknown_items: Literal["refuse", "skip"] = Field(
        default="refuse", description="What to do with unknown items of `history`; `skipped` names them."
    )
    new_only: StrictBool = Field(default=False, description="Return only items without training interactions.")
    diversity: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0.0,
        description="From 0, the order of the scores, to 1: penalty of an item for its similarity to earlier ones.",
    )
    factors: dict[Id, Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]] = Field(
        default={},
        max_length=32,
        description="Factors of the weights of slot kinds and components; 1 by default. The names "
        "are those of `shares`.",
    )
    rules: Id | None = Field(
        default=DEFAULT_RULES,
        description="Name of the rule set to apply; `null` for none. The set `default` need not exist.",
    )
    explain: StrictBool = Field(
        default=False,
        description="Explain each item by items of the history (`because`), and by the answers of the `slots`.",
    )


class Effect(BaseModel):
    """An item of the history, and the decrease of the score without it."""

    item_id: str
    title: str
    effect: float


class Nearest(BaseModel):
    """An item recommended by one slot alone, with the inner product."""

    item_id: str
    title: str
    score: float


class Item(BaseModel):
    """A recommended item. The shares sum to the score: one per kind of slot, then the non-zero ones of the components
    (``transitions_*``, ``text_similarity``), of ``new_item`` for items without training interactions, of ``repeats``
    for items of the history and of ``rules`` for boosted ones."""

    item_id: str
    title: str
    score: float = Field(
        description="Orders the items of one answer; not comparable across requests. For a popularity fallback, the "
        "number of training interactions."
    )
    shares: dict[str, float] = Field(
        description="Contributions of slot kinds and components to the score; empty for a popularity fallback."
    )
    attributes: dict[str, list[str]]
    because: list[Effect] | None = Field(
        default=None,
        description="The items of the history whose absence lowers the score the most, largest first. Only if "
        "`explain` is set.",
    )


class FallbackAnswer(BaseModel):
    """The reason for a fallback, and the source of the answer."""

    reason: FallbackReason = Field(description=f"One of {', '.join(get_args(FallbackReason))}.")
    source: FallbackSource


class RecommendResponse(BaseModel):
    """Items, best first; fewer than k only if no more are allowed."""

    model_config = ConfigDict(protected_namespaces=())

    answer_id: str = Field(description="Id of this answer for `POST /v1/feedback`.")
    model_version: str
    items: list[Item]
    fallback: FallbackAnswer | None = Field(description="`null` if the model answered with the complete history.")
    skipped: list[str] = Field(description="Unknown items of the history, which were not read.")
    slots: dict[str, list[Nearest]] | None = Field(
        default=None,
        description="The items that each kind of slot alone would recommend. Only if `explain` is set.",
    )


class SimilarResponse(BaseModel):
    """The items nearest to one, the nearest first."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    item_id: str
    by: str
    items: list[Item]


class LiveStatus(BaseModel):
    """The process is alive."""

    status: str


class GraphReady(BaseModel):
    """The served graph."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    nodes: int = Field(description="Number of nodes.")
    tasks: list[str] = Field(description="The tasks of the model.")
    can_ask: bool = Field(description="Whether a model answers questions.")


class Ready(BaseModel):
    """Model and index are loaded and have answered a first request; details require the scope `read`."""

    model_config = ConfigDict(protected_namespaces=())

    status: str = Field(description="`ready`, or `not_ready` with 503: live changes could not be read yet.")
    model_version: str | None = None
    items: int | None = None
    live_items: int | None = Field(default=None, description="Number of items added since the bundle was written.")
    users: int | None = None
    retriever: str | None = None
    graph: GraphReady | None = Field(default=None, description="Absent if no graph is served.")


class ErrorDetail(BaseModel):
    """``code`` is for programs, ``message`` one line for users."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """The body of every answer other than 2xx."""

    error: ErrorDetail


def error_responses(unknown: str | None, invalid: str, conflict: str | None = None) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route, for the OpenAPI document.

    ``unknown`` describes its 404 and ``conflict`` its 409, ``None`` if there is none; ``invalid`` completes its 422.
    """
    descriptions = {
        400: "The body cannot be read (`bad_request`).",
        401: "A bearer token is missing or unknown (`unauthorized`).",
        403: "The token lacks the scope (`forbidden`).",
        404: unknown,
        409: conflict,
        413: "The body is too long (`body_too_large`).",
        422: f"Not JSON (`invalid_json`), {invalid}",
        429: "Too many requests of this token; see `Retry-After`.",
        431: "Path and headers are too long (`headers_too_large`).",
        503: "Too many requests are waiting (`overloaded`), or the store does not answer (`store_unavailable`); see "
        "`Retry-After`.",
    }
    return {
        code: {"model": ErrorResponse, "description": text} for code, text in descriptions.items() if text is not None
    }


def limited_request(max_history: int, max_k: int) -> type[RecommendRequest]:
    """Return ``RecommendRequest`` with limits, so that the OpenAPI document includes them."""
    base = RecommendRequest.model_fields
    ids = Annotated[list[Id], Field(max_length=max_history)]
    fields: dict[str, Any] = {
        "history": (
            Annotated[list[Id], Field(min_length=1, max_length=max_history)] | None,
            Field(default=None, description=base["history"].description),
        ),
        "k": (
            Annotated[StrictInt, Field(ge=1, le=max_k)],
            Field(default=min(10, max_k), description=base["k"].description),
        ),
        "allow": (ids | None, Field(default=None, description=base["allow"].description)),
        "deny": (ids, Field(default=[], description=base["deny"].description)),
    }
    return create_model("RecommendRequest", __base__=RecommendRequest, __doc__=RecommendRequest.__doc__, **fields)
