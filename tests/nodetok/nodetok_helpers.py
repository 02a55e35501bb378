"""A small graph with planted classes, and small models on it."""

import numpy as np
import torch

from nodetok.graph import Graph
from nodetok.language.input_ablation import ablate
from nodetok.language.interface import Task
from nodetok.language.settings import TOKENS, GraphModelSettings, GraphTrainingSettings
from nodetok.language.training import Reader, build
from nodetok.settings import AnchorSettings, TokenizerSettings
from nodetok.tasks.classification import classification
from setrec.models.settings import BackboneSettings

torch.set_num_threads(1)


def planted(nodes: int = 60, classes: int = 3, seed: int = 0) -> tuple[Graph, np.ndarray]:
    """A graph whose classes are dense inside and sparse between, and the class of each node."""
    rng = np.random.default_rng(seed)
    kind = np.arange(nodes) % classes
    same = kind[:, None] == kind[None, :]
    linked = np.triu(rng.random((nodes, nodes)) < np.where(same, 0.3, 0.01), 1)
    source, target = np.nonzero(linked)
    return Graph.from_arrays(source, target, nodes, ids=[f"n{i}" for i in range(nodes)]), kind


def task(nodes: int = 60, **changes) -> Task:
    graph, kind = planted(nodes)
    rng = np.random.default_rng(1)
    features = (rng.random((nodes, 12)) < 0.2).astype(np.float32)
    split = ["train" if i < nodes // 2 else "valid" if i < 2 * nodes // 3 else "test" for i in range(nodes)]
    labels = [f"class {chr(97 + k)}" for k in kind]
    settings = TokenizerSettings(anchors=AnchorSettings(count=8, **changes))
    return classification(graph, labels, split, features, settings)


def few(of: Task, count: int = 96) -> Task:
    """The task with epochs of ``count`` examples."""
    draw = of.draw
    of.draw = lambda rng: ((examples.take(np.arange(count)), table) for examples, table in draw(rng))
    return of


def reader(of: Task, family: str = "qwen3", name: str = TOKENS, **changes) -> Reader:
    """An untrained reader in evaluation mode, every parameter away from its neutral start."""
    fields = {"position_tokens": 2, "neighbours": 4, "feature_restart": 0.2, "dropout": 0.0, **changes}
    settings = GraphModelSettings(backbone=BackboneSettings(family=family, dropout=0.0), **fields)
    made = build(of, ablate(of, name, settings), GraphTrainingSettings(precision="float32"))
    torch.manual_seed(3)
    with torch.no_grad():
        made.model.queries.normal_()
        if made.model.pair_distances is not None:
            made.model.pair_distances.bias.normal_()
            made.model.pair_distances.embedding.normal_()
    made.model.eval()
    return made
