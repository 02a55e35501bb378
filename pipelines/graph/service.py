"""A graph artifact as a service of ``serving``, which itself does not depend on graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nodetok.asking.answering import GraphAnswerer
from nodetok.asking.artifact import GraphArtifact
from nodetok.distances import reached
from serving.runtime.graph_service import AnchorDistance, GraphAnswer, Mode, NearNode, NodeDescription, ScoredAnswer
from setrec.errors import BundleError, ConfigError, SetRecError


class GraphReaderService:
    """Answers questions about the graph and describes its nodes."""

    def __init__(self, artifact: GraphArtifact) -> None:
        self.artifact = artifact
        self._answerer = GraphAnswerer(artifact)

    @property
    def model_version(self) -> str:
        """Version of the artifact."""
        return self.artifact.version

    @property
    def count(self) -> int:
        """Number of nodes."""
        return len(self.artifact.ids)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the model."""
        return (self.artifact.task,)

    @property
    def can_ask(self) -> bool:
        """Whether the artifact has a trained model."""
        return self.artifact.reader is not None

    def ask(self, question: str, k: int, mode: Mode) -> GraphAnswer:
        """See ``serving.api.routes.graph.GraphService``."""
        result = self._answerer.ask(question, k, written=mode == "text")
        ranked: list[tuple[str, float | None]] = [] if result.refused else list(result.ranked)
        if mode == "text" and result.answer is not None:
            ranked = [(result.answer, None)]
        answers = tuple(ScoredAnswer(answer, score) for answer, score in ranked)
        edges = tuple(tuple(edge) for edge in result.edges)
        return GraphAnswer(answers, mode, tuple(result.nodes), edges, result.refused, result.reason)

    def nodes(self, ids: Sequence[str], k: int) -> list[NodeDescription]:
        """See ``serving.api.routes.graph.GraphService``."""
        rows = [self.artifact.row(node) for node in ids]
        if self.artifact.tokenizer is None:
            raise SetRecError("the nodes of this task are in many small graphs and have no common anchors")
        return [self._describe(row, k) for row in rows]

    def _describe(self, row: int, k: int) -> NodeDescription:
        artifact, tokenizer = self.artifact, self.artifact.tokenizer
        assert tokenizer is not None
        # Nodes that reach no common anchor have a similarity of 0.
        pairs = [pair for pair in zip(*tokenizer.nearest(row, k), strict=True) if pair[1] > 0]
        near = tuple(NearNode(artifact.ids[r], float(score)) for r, score in pairs)
        own = np.where(reached(tokenizer.table[row]), tokenizer.table[row].astype(float), np.nan)
        # A directed graph has columns for both directions; the first K are distances to the anchors.
        anchors = tuple(
            AnchorDistance(str(node), None if np.isnan(d) else float(d))
            for node, d in zip(tokenizer.anchor_ids, own, strict=False)
        )
        text = None if artifact.texts is None else artifact.texts[row]
        return NodeDescription(artifact.ids[row], text, [float(x) for x in tokenizer.every[row]], near, anchors)


def load(path: Path) -> GraphReaderService:
    """Load the artifact at ``path`` as a service.

    Raises:
        BundleError: it cannot be loaded.
    """
    try:
        return GraphReaderService(GraphArtifact.load(path))
    except ConfigError as error:
        raise BundleError(str(error)) from error
