"""A graph artefact as the service that ``serving`` offers over HTTP; ``serving`` itself knows no graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nodetok.artifact import GraphArtifact
from nodetok.asking.answering import GraphAnswerer
from nodetok.distances import reached
from serving.runtime.graph_service import AnchorDistance, GraphAnswer, Mode, NearNode, NodeDescription, ScoredAnswer
from setrec.errors import BundleError, ConfigError, SetRecError


class GraphReaderService:
    """Answers questions about the graph and describes its nodes."""

    def __init__(self, artifact: GraphArtifact) -> None:
        self.artifact = artifact
        self._answerer = GraphAnswerer(artifact)
        tokenizer = artifact.tokenizer
        self.positions = None if tokenizer is None else tokenizer.transform()

    @property
    def model_version(self) -> str:
        """Version of the artefact."""
        return self.artifact.version

    @property
    def count(self) -> int:
        """Number of nodes."""
        return len(self.artifact.ids)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model was trained for."""
        return (self.artifact.task,)

    @property
    def can_ask(self) -> bool:
        """Whether there is a trained model."""
        return self.artifact.reader is not None

    def ask(self, question: str, k: int, mode: Mode) -> GraphAnswer:
        """See ``serving.api.routes.graph.GraphService``."""
        found = self._answerer.ask(question, k, written=mode == "text")
        ranked: list[tuple[str, float | None]] = [] if found.refused else list(found.ranked)
        if mode == "text" and found.answer is not None:
            ranked = [(found.answer, None)]
        answers = tuple(ScoredAnswer(answer, score) for answer, score in ranked)
        edges = tuple(tuple(edge) for edge in found.edges)
        return GraphAnswer(answers, mode, tuple(found.nodes), edges, found.refused, found.reason)

    def nodes(self, ids: Sequence[str], k: int) -> list[NodeDescription]:
        """See ``serving.api.routes.graph.GraphService``."""
        rows = [self.artifact.row(node) for node in ids]
        if self.artifact.tokenizer is None or self.positions is None:
            raise SetRecError("the nodes of this task stand in many small graphs and have no common anchors")
        return [self._describe(row, k) for row in rows]

    def _describe(self, row: int, k: int) -> NodeDescription:
        artifact, tokenizer, positions = self.artifact, self.artifact.tokenizer, self.positions
        assert tokenizer is not None
        assert positions is not None
        near = tuple(NearNode(artifact.ids[r], float(score)) for r, score in self._nearest(row, k))
        own = np.where(self._reached(np.array([row]))[0], tokenizer.table[row].astype(float), np.nan)
        # Both directions of a directed graph stand side by side; the first K columns are distances to the anchors.
        anchors = tuple(
            AnchorDistance(str(node), None if np.isnan(d) else float(d))
            for node, d in zip(tokenizer.anchor_ids, own, strict=False)
        )
        text = None if artifact.texts is None else artifact.texts[row]
        return NodeDescription(artifact.ids[row], text, [float(x) for x in positions[row]], near, anchors)

    def _nearest(self, row: int, k: int) -> list[tuple[int, float]]:
        """Up to ``k`` rows with their similarity; nodes that share no anchor within reach with ``row`` are not near."""
        tokenizer, positions = self.artifact.tokenizer, self.positions
        assert tokenizer is not None
        assert positions is not None
        every = torch.from_numpy(positions)
        with torch.no_grad():
            scores = tokenizer.positions.similarity(every[row][None], every).numpy()
        scores[row] = -np.inf
        some = np.argpartition(-scores, min(4 * k, len(scores) - 1))[: 4 * k]
        some = some[np.lexsort((some, -scores[some]))]
        shared = (self._reached(some) & self._reached(np.array([row]))).any(axis=1) & (some != row)
        return [(int(r), float(scores[r])) for r in some[shared][:k]]

    def _reached(self, rows: np.ndarray) -> np.ndarray:
        """Which anchors ``rows`` reach, bool (rows, K)."""
        assert self.artifact.tokenizer is not None
        table = self.artifact.tokenizer.table[rows]
        return reached(table)


def load(path: Path) -> GraphReaderService:
    """The service over the artefact at ``path``.

    Raises:
        BundleError: it cannot be loaded.
    """
    try:
        return GraphReaderService(GraphArtifact.load(path))
    except ConfigError as error:
        raise BundleError(str(error)) from error
