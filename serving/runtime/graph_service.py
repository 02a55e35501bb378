"""What a graph service must offer. The service comes from outside, by a :data:`GraphLoader`: nothing here knows how
nodes become tokens or which model reads them."""

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
    """One answer; ``score`` is ``None`` where the answer was generated as text."""

    answer: str
    score: float | None


@dataclass(frozen=True)
class GraphAnswer:
    """Answers, best first, the ids of the nodes they rest on, those of the question first, and the edges between these,
    [source, target] or [source, relation, target]. ``refused``: there is no answer, for the ``reason`` given."""

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
    """How far an anchor is; ``distance`` is ``None`` where no path leads to it."""

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
    """A graph that can be asked. Numbers it gives are plain and finite; it is called from one thread at a time."""

    @property
    def model_version(self) -> str:
        """Name of what answers."""
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
        """Whether there is a model to ask; without one, nodes can be described all the same."""
        ...

    def ask(self, question: str, k: int, mode: Mode) -> GraphAnswer:
        """At most ``k`` answers, or a refusal; the question names nodes as ``[[id]]``, by id or by title.

        Raises:
            UnknownNodeError: it mentions a node that the graph does not hold.
            SetRecError: it cannot be answered for another reason.
        """
        ...

    def nodes(self, ids: Sequence[str], k: int) -> list[NodeDescription]:
        """The nodes in the order of ``ids``, each with the ``k`` nodes nearest to it.

        Raises:
            UnknownNodeError: the graph does not hold one of them.
        """
        ...


GraphLoader = Callable[[Path], GraphService]
