"""Settings of the graph library. Does not import torch, so that a configuration is validated quickly."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from setrec.settings import Seed, Settings

Strategy = Literal["coverage", "paper", "degree", "random", "k_centre"]

Kind = Literal["hops", "weighted", "walks"]


class AnchorSettings(Settings):
    """Settings of anchor selection.

    ``count`` is K, at most V; ``coverage`` stops earlier, at that share of nodes within ``radius`` hops of an anchor
    (the last tenth often costs more anchors than the rest). ``paper`` is ``coverage`` without anchors covered by
    another one, as in NT-LLM's released selection; it may need several times as many.
    """

    strategy: Strategy = "coverage"
    count: int | None = Field(64, ge=1)
    coverage: float | None = Field(None, gt=0, le=1)
    radius: int = Field(2, ge=1, le=16)
    seed: Seed = 0


class DistanceSettings(Settings):
    """Settings of the distance between a node and an anchor.

    ``hops`` counts edges (uint8, K bytes a node). ``weighted`` adds the lengths of edges (float32). ``walks`` is minus
    the logarithm of the personalised PageRank of the anchor for a walk that starts at the node and stops at each step
    with probability ``restart``, cut after ``steps`` steps (float32; half an edge's share per million nodes and
    anchor in time). Where hops are nearly constant, as between users and items, walks still distinguish nodes.
    ``direction`` of a directed graph: ``ignored``, ``to`` the anchors, ``from`` them, or ``both`` (2 K columns).
    """

    kind: Kind = "hops"
    direction: Literal["ignored", "to", "from", "both"] = "ignored"
    restart: float = Field(0.15, ge=0, lt=1)
    steps: int = Field(8, ge=1)


class PositionSettings(Settings):
    """Settings of the positions.

    ``tau`` is the rate of decay per hop, or per median edge length if edges have lengths; it is lowered if the
    positions of the farthest nodes would otherwise vanish (see :func:`rate`). With ``steps`` > 0 a tau per anchor is
    fitted to the order of hops, in steps of ``batch`` triplets over the anchors and ``pivots`` further nodes: 0.2 to
    0.4 points on Cora and WN18RR, see docs/benchmarks.md.
    """

    tau: float = Field(2.0, gt=0)
    pivots: int = Field(256, ge=0)
    steps: int = Field(0, ge=0)
    batch: int = Field(4096, ge=16)
    learning_rate: float = Field(2e-3, gt=0)
    seed: Seed = 0


class TokenizerSettings(Settings):
    """Settings of the node tokenizer; 64 anchors and hops take 64 bytes per node."""

    anchors: AnchorSettings = AnchorSettings()
    distances: DistanceSettings = DistanceSettings()
    positions: PositionSettings = PositionSettings()


class RandomSplit(Settings):
    """Random split for data without a column ``split``: of nodes or edges within each class, or of whole graphs with
    ``by`` ``graph``; of triples only those whose entities and relation occur in other training triples."""

    valid: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.2, gt=0, lt=1)
    by: Literal["node", "graph"] = "node"
    seed: Seed = 0

    @model_validator(mode="after")
    def _leaves_training(self) -> RandomSplit:
        if self.valid + self.test >= 1:
            raise ValueError("valid + test must stay below 1: nothing would be left to train on")
        return self


COLUMNS = (
    "node_id", "graph_id", "text", "words", "label", "split", "source", "target", "weight", "entity_id", "head",
    "relation", "tail",
)  # fmt: skip
"""Names of columns that the readers know."""


class GraphDataSettings(Settings):
    """Settings of the readers.

    ``columns`` renames: ``{source: from, target: to}`` reads the column ``from`` as ``source``. ``dangling`` defines
    the handling of edges and triples with a node that is not in the table of nodes: an error, dropped, or the node is
    added (without label, split or text). ``split`` is for data without a split. ``edge_attributes``: columns of
    ``edges`` that are shown in words, in addition to its column ``text``.
    """

    columns: dict[str, str] = Field(default_factory=dict)
    dangling: Literal["error", "drop", "add"] = "error"
    split: RandomSplit | None = None
    edge_attributes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _renames_known_columns(self) -> GraphDataSettings:
        for name in self.columns:
            if name not in (*COLUMNS, *self.edge_attributes):
                raise ValueError(f"columns: '{name}' is none of {', '.join((*COLUMNS, *self.edge_attributes))}")
        return self
