"""Interface of a graph service, which a :data:`GraphLoader` provides: this package does not depend on how nodes are
tokenised or which model reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from setrec.errors import SetRecError

Mode = Literal["grounded", "text"]


class GraphError(SetRecError):
    """A question that the served graph cannot answer."""


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer; ``score`` is ``None`` for generated text."""

    answer: str
    score: float | None


@dataclass(frozen=True)
class GraphAnswer:
    """Answers, best first, the ids of the supporting nodes, those of the question first, and the edges between these,
    [source, target] or [source, relation, target]. ``refused``: there is no answer, for the given ``reason``."""

    answers: tuple[ScoredAnswer, ...]
    mode: Mode
    nodes: tuple[str, ...]
    edges: tuple[tuple[str, ...], ...] = ()
    refused: bool = False
    reason: str = ""


@dataclass(frozen=True)
class NearNode:
    """A node at a similar position."""

    node_id: str
    similarity: float


@dataclass(frozen=True)
class AnchorDistance:
    """Distance to an anchor; ``None`` if there is no path."""

    node_id: str
    distance: float | None


@dataclass(frozen=True)
class NodeDescription:
    """A node as the model sees it: ``token`` is its position vector, computed from its distances to the anchors."""

    node_id: str
    text: str | None
    token: list[float]
    nearest: tuple[NearNode, ...]
    anchors: tuple[AnchorDistance, ...]


class GraphService(Protocol):
    """A graph that answers questions. Returned numbers are plain and finite; it is called from one thread at a time."""

    @property
    def model_version(self) -> str:
        """Version of the model."""
        ...

    @property
    def count(self) -> int:
        """Number of nodes."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the model was trained for."""
        ...

    @property
    def can_ask(self) -> bool:
        """Whether there is a model for questions; without one, nodes can still be described."""
        ...

    def ask(self, question: str, k: int, mode: Mode) -> GraphAnswer:
        """Return at most ``k`` answers, or a refusal; the question names nodes as ``[[id]]``, by id or by title.

        Raises:
            UnknownNodeError: the question names a node that is not in the graph.
            SetRecError: it cannot be answered for another reason.
        """
        ...

    def nodes(self, ids: Sequence[str], k: int) -> list[NodeDescription]:
        """Return the nodes in the order of ``ids``, each with its ``k`` nearest nodes.

        Raises:
            UnknownNodeError: one of them is not in the graph.
        """
        ...


GraphLoader = Callable[[Path], GraphService]
