"""What travels over HTTP: recommendations, probes and errors. Events, users and items: ``serving.api.schemas.live``."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictInt, StrictStr, create_model

from serving.engine.requests import DEFAULT_RULES, FallbackReason, FallbackSource
from serving.retrieval.filters import Filter

MAX_ID = 256
# No control characters: an id is a name, and what reads it may be a terminal or a log. Nor "." and "..", which clients
# take out of a URL: such a user could never be erased.
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
        description="A user: what the bundle knows of them, then what came as events since. Popularity answers for "
        "one nobody knows, and `fallback` says so.",
    )
    k: StrictInt = Field(default=10, description="How many items.")
    exclude_history: StrictBool = Field(default=True, description="Leave the items of the history out of the answer.")
    filter: Filter | None = Field(default=None, description="Answer only items whose attributes match.")
    allow: list[Id] | None = Field(
        default=None, description="Answer only these items; ids that are none count for none."
    )
    deny: list[Id] = Field(default=[], description="Leave these items out of the answer.")
    unknown_items: Literal["refuse", "skip"] = Field(
        default="refuse", description="What to do with items of `history` that are none; `skipped` names them."
    )
    new_only: StrictBool = Field(default=False, description="Answer only items without training interactions.")
    diversity: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0.0,
        description="From 0, the order of the scores, to 1: how much an item loses by being like one before it.",
    )
    factors: dict[Id, Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]] = Field(
        default={},
        max_length=32,
        description="What the weight of a slot kind or component is multiplied by; 1 where it is not named. The names "
        "are those of `shares`.",
    )
    rules: Id | None = Field(
        default=DEFAULT_RULES,
        description="Name of the rule set that is applied; `null` for none. The set `default` need not exist.",
    )
    explain: StrictBool = Field(
        default=False, description="Say of each item `because` of which items of the history, and what `slots` answer."
    )


class Effect(BaseModel):
    """An item of the history, and by how much the score falls when it is left out."""

    item_id: str
    title: str
    effect: float


class Nearest(BaseModel):
    """An item that a slot's answer alone would give, with the inner product."""

    item_id: str
    title: str
    score: float


class Item(BaseModel):
    """A recommended item. The shares sum to the score: one per kind of slot, then those that are not zero of the
    components (``transitions_*``, ``text_similarity``), of ``new_item`` for items without training interactions, of
    ``repeats`` for items of the history and of ``rules`` for boosted ones."""

    item_id: str
    title: str
    score: float = Field(
        description="Orders the items of one answer; not comparable across requests. Where popularity answers, the "
        "number of training interactions."
    )
    shares: dict[str, float] = Field(
        description="What each kind of slot and each component gave to the score; empty where popularity answers."
    )
    attributes: dict[str, list[str]]
    because: list[Effect] | None = Field(
        default=None,
        description="The items of the history whose absence lowers the score the most, largest first. Left out unless "
        "`explain` is asked for.",
    )


class FallbackAnswer(BaseModel):
    """Why the answer is not what was asked for, and where it comes from instead."""

    reason: FallbackReason = Field(description=f"One of {', '.join(get_args(FallbackReason))}.")
    source: FallbackSource


class RecommendResponse(BaseModel):
    """Items, best first; fewer than k only when no more are allowed."""

    model_config = ConfigDict(protected_namespaces=())

    answer_id: str = Field(description="Names this answer in `POST /v1/feedback`.")
    model_version: str
    items: list[Item]
    fallback: FallbackAnswer | None = Field(description="`null` where the model answered from all that is known.")
    skipped: list[str] = Field(description="Items of the history that are none here, and so were not read.")
    slots: dict[str, list[Nearest]] | None = Field(
        default=None,
        description="What each kind of slot alone would answer. Left out unless `explain` is asked for.",
    )


class SimilarResponse(BaseModel):
    """The items nearest to one, the nearest first."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    item_id: str
    by: str
    items: list[Item]


class LiveStatus(BaseModel):
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

    status: str = Field(description="`ready`, or `not_ready` with 503: live changes could not be read yet.")
    model_version: str | None = None
    items: int | None = None
    live_items: int | None = Field(default=None, description="How many of the items were put since.")
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


def error_responses(unknown: str | None, invalid: str, conflict: str | None = None) -> dict[int | str, dict[str, Any]]:
    """What a route may answer but 2xx, for the OpenAPI document.

    ``unknown`` is its 404 and ``conflict`` its 409, ``None`` where it has none; ``invalid`` ends its 422.
    """
    told = {
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
    return {code: {"model": ErrorResponse, "description": text} for code, text in told.items() if text is not None}


def limited_request(max_history: int, max_k: int) -> type[RecommendRequest]:
    """``RecommendRequest`` with limits, so that the OpenAPI document states them."""
    given = RecommendRequest.model_fields
    ids = Annotated[list[Id], Field(max_length=max_history)]
    fields: dict[str, Any] = {
        "history": (
            Annotated[list[Id], Field(min_length=1, max_length=max_history)] | None,
            Field(default=None, description=given["history"].description),
        ),
        "k": (
            Annotated[StrictInt, Field(ge=1, le=max_k)],
            Field(default=min(10, max_k), description=given["k"].description),
        ),
        "allow": (ids | None, Field(default=None, description=given["allow"].description)),
        "deny": (ids, Field(default=[], description=given["deny"].description)),
    }
    return create_model("RecommendRequest", __base__=RecommendRequest, __doc__=RecommendRequest.__doc__, **fields)
