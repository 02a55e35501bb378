"""Routes for questions about a graph, served only if the bundle contains one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictInt, StrictStr

from serving.api.access.tokens import READ
from serving.api.schemas.recommendations import GraphReady, error_responses
from serving.runtime.graph_service import GraphAnswer, GraphError, GraphService, Mode, NodeDescription

MAX_QUESTION, MAX_ANSWERS, MAX_NODES, MAX_NEAREST = 4000, 100, 100, 100

_ASK_EXAMPLES: list[JsonValue] = [{"question": "Which film is most like [[50]]?", "k": 5, "mode": "grounded"}]
_NODES_EXAMPLES: list[JsonValue] = [{"node_ids": ["50", "181"], "k": 5}]
_MODE = "`grounded`: answers are chosen from the graph's candidates, each with a score. `text`: answers are generated."


class AskRequest(BaseModel):
    """A question, which names nodes by id, by title or as `[[id]]`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": _ASK_EXAMPLES})

    question: StrictStr = Field(
        min_length=1, max_length=MAX_QUESTION, description="Plain text; `[[id]]` stands for a node."
    )
    k: StrictInt = Field(default=5, ge=1, le=MAX_ANSWERS, description="Maximum number of answers.")
    mode: Mode = Field(default="grounded", description=_MODE)


class NodesRequest(BaseModel):
    """Ids of the nodes to describe."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": _NODES_EXAMPLES})

    node_ids: Annotated[list[StrictStr], Field(min_length=1, max_length=MAX_NODES, description="Ids of nodes.")]
    k: StrictInt = Field(default=5, ge=0, le=MAX_NEAREST, description="Number of nearest nodes for each.")


class GraphAnswerItem(BaseModel):
    """One answer."""

    answer: str
    score: float | None = Field(description="Score that orders the answers of one question; null for generated text.")


class AskResponse(BaseModel):
    """Answers, best first."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    mode: Mode = Field(description=_MODE)
    nodes: list[str] = Field(description="Ids of the nodes that support the answer, those of the question first.")
    edges: list[list[str]] = Field(description="Edges between them: source, relation if it has a name, target.")
    refused: bool = Field(description="Whether there is no answer.")
    reason: str = Field(description="Why the question was refused; empty otherwise.")
    answers: list[GraphAnswerItem]


class NearNodeItem(BaseModel):
    """A node at a similar position."""

    node_id: str
    similarity: float


class AnchorItem(BaseModel):
    """An anchor and its distance."""

    node_id: str
    distance: float | None = Field(description="Null if there is no path.")


class NodeItem(BaseModel):
    """A node as the model sees it."""

    node_id: str
    text: str | None = Field(description="The node's text, if it has one.")
    token: list[float] = Field(description="The position vector, computed from the distances to the anchors.")
    nearest: list[NearNodeItem] = Field(description="Most similar first.")
    anchors: list[AnchorItem]


class NodesResponse(BaseModel):
    """Nodes, in the order of the request."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    nodes: list[NodeItem]


def graph_ready(graph: GraphService) -> GraphReady:
    """Return the graph's part of the readiness probe."""
    return GraphReady(
        model_version=graph.model_version, nodes=graph.count, tasks=list(graph.tasks), can_ask=graph.can_ask
    )


def add_graph_routes(app: FastAPI, graph: GraphService) -> None:
    """Add the routes of ``graph``. Its calls run on one thread: outside the event loop, one at a time."""
    worker = ThreadPoolExecutor(1, thread_name_prefix="graph")

    async def alone(work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(worker, work, *arguments)

    ask_errors = error_responses(
        "The question mentions a node that the graph does not hold (`unknown_node`).",
        "a field is missing or out of range, or the question cannot be answered (`invalid_request`).",
    )
    nodes_errors = error_responses(
        "The graph does not hold one of the nodes (`unknown_node`).",
        "a field is missing or out of range (`invalid_request`).",
    )

    # Answers are serialised without validation, as for recommendations.
    @app.post("/v1/graph/ask", response_model=AskResponse, responses=ask_errors, tags=["graph"], dependencies=[READ])
    async def ask(body: AskRequest) -> JSONResponse:
        """Answer a question about nodes of the graph, best answer first."""
        if not graph.can_ask:
            raise GraphError(
                "the served graph comes without a model that answers questions; its nodes can be described"
            )
        found: GraphAnswer = await alone(graph.ask, body.question, body.k, body.mode)
        answers = [vars(answer) for answer in found.answers]
        return JSONResponse(
            {
                "model_version": graph.model_version, "mode": found.mode, "nodes": list(found.nodes),
                "edges": [list(edge) for edge in found.edges], "refused": found.refused, "reason": found.reason,
                "answers": answers,
            }
        )  # fmt: skip

    @app.post(
        "/v1/graph/nodes", response_model=NodesResponse, responses=nodes_errors, tags=["graph"], dependencies=[READ]
    )
    async def nodes(body: NodesRequest) -> JSONResponse:
        """Describe nodes of the graph: position, distances to the anchors, and nearest nodes."""
        found: list[NodeDescription] = await alone(graph.nodes, body.node_ids, body.k)
        return JSONResponse({"model_version": graph.model_version, "nodes": [_plain(node) for node in found]})


def _plain(node: NodeDescription) -> dict[str, Any]:
    return vars(node) | {"nearest": [vars(n) for n in node.nearest], "anchors": [vars(a) for a in node.anchors]}
