"""Input ablations: models that read only some of the nodes' texts and tokens.

Language models with graph tokens have been reported to ignore them. So each task is also trained from text only, from
tokens only, from node tokens shuffled among the nodes, and from Laplacian eigenvectors instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import linalg

from nodetok.graph import Graph
from nodetok.language.interface import Task
from nodetok.language.prompts import Neighbourhoods, NodeData, attach
from nodetok.language.settings import LAPLACIAN, SHUFFLED, TEXT, TOKENS, TOKENS_ONLY, GraphModelSettings
from setrec.rows import normalize_rows


@dataclass(frozen=True, eq=False)
class InputAblation:
    """The input of a model. ``read`` converts a table of distances (the task's own, or one without a fold's edges) to
    node data. ``plain``: prompts are read as words only; ``words``: texts of nodes and edges are shown in words."""

    name: str
    settings: GraphModelSettings
    columns: int
    feature_tokens: int
    neighbourhoods: Neighbourhoods | None
    read: Callable[[np.ndarray | None], NodeData]
    plain: bool = False
    words: bool = True


def ablate(task: Task, name: str, settings: GraphModelSettings, seed: int = 0) -> InputAblation:
    """Return the input of a task under the ablation ``name``.

    ``node tokens``: positions, features, neighbours, and the words of the nodes' texts. ``text only``: the words and
    the node's own features. ``tokens only``: no words of nodes and edges; equal to ``node tokens`` if none has a text.
    ``shuffled tokens``: positions, neighbours and diffused features of another node, but the node's own words and
    features.
    ``Laplacian eigenvectors``: as many as there are anchors, of the normalised Laplacian, in place of positions.
    """
    rng = np.random.default_rng([seed, 17])
    settings = settings.model_copy(update={"neighbours": 0 if name == TEXT else settings.neighbours})
    if name == TEXT:
        settings = settings.model_copy(update={"position_tokens": 0, "feature_restart": 0.0})
    of = rng.permutation(len(task.graph)) if name == SHUFFLED else np.arange(len(task.graph))
    neighbourhoods = None
    if settings.neighbours:
        neighbourhoods = Neighbourhoods.sample(len(task.graph), facts(task), settings.neighbours, rng)
        neighbourhoods = Neighbourhoods(neighbourhoods.rows[of], neighbourhoods.relations[of])
    features = None if task.features is None else _feature_tokens(task, settings.feature_restart, of)
    feature_tokens = 0 if features is None else features.shape[1]
    if name == LAPLACIAN:
        own = attach(_spectrum(task, seed), features, task.class_vectors, raw=True)
        return InputAblation(name, settings, own.table.shape[1], feature_tokens, neighbourhoods, lambda _: own)
    still = attach(task.table[of], features, task.class_vectors)
    if settings.pair_neighbours and task.graph.edges:
        listed = Neighbourhoods.sample(len(task.graph), facts(task), settings.pair_neighbours, rng).rows[of]
        still = replace(still, near=torch.from_numpy(listed))
    plain = name == TEXT

    def read(table: np.ndarray | None) -> NodeData:
        return still if table is None else replace(still, table=attach(table[of], None).table)

    words = name != TOKENS_ONLY
    return InputAblation(name, settings, task.table.shape[1], feature_tokens, neighbourhoods, read, plain, words)


def ablations(task: Task, names: Sequence[str]) -> list[str]:
    """Return the ablations among ``names`` that differ for this task: without texts of nodes or edges, ``tokens only``
    equals ``node tokens``. ``node tokens`` comes first: parts shared with the others count as its training time."""
    texts = task.node_texts is not None or task.test.prompts.edge_texts is not None
    shown = [name for name in names if name != TOKENS_ONLY or texts]
    return sorted(shown, key=lambda name: name != TOKENS)


def facts(task: Task) -> np.ndarray:
    """Return the facts of every node, int64 (A, 3): node, relation, neighbour; relation 0 if edges have none."""
    if task.facts is not None:
        return task.facts
    source, target = task.graph.arcs()
    return np.stack([source, np.zeros_like(source), target], axis=1)


def diffused(graph: Graph, features: np.ndarray, restart: float) -> np.ndarray:
    """Return features (V, F) averaged over a random walk with restart from each node, to about 1e-3: restart * (I - (1
    - restart) A)^-1 X with A = D^-1/2 (adjacency + I) D^-1/2.

    Personalised PageRank by power iteration (Gasteiger et al., "Predict then Propagate", ICLR 2019).
    """
    view = graph.undirected
    adjacency = view.adjacency + sparse.identity(len(view), dtype=np.float32)
    scale = sparse.diags_array(1 / np.sqrt(np.asarray(adjacency.sum(axis=1)).ravel()), dtype=np.float32)
    step = ((1 - restart) * (scale @ adjacency @ scale)).tocsr()
    averaged = features.astype(np.float32)
    again = restart * averaged
    for _ in range(math.ceil(math.log(1e-3) / math.log1p(-restart))):
        averaged = step @ averaged + again
    return averaged


def _feature_tokens(task: Task, restart: float, of: np.ndarray) -> np.ndarray:
    """Return feature tokens (V, 1 or 2, F), rows of length 1: a node's own features and, if ``restart`` is above 0, the
    diffused features of node ``of`` (V,)."""
    assert task.features is not None
    own = normalize_rows(task.features.astype(np.float32))
    if not restart:
        return own[:, None]
    return np.stack([own, normalize_rows(diffused(task.graph, own, restart))[of]], axis=1)


def _spectrum(task: Task, seed: int) -> np.ndarray:
    """Return eigenvectors of the graph, or of each of the small graphs in it."""
    if task.starts is None:
        return eigenvectors(task.graph, task.table.shape[1], seed)
    out = np.zeros((len(task.graph), task.table.shape[1]), dtype=np.float32)
    adjacency = task.graph.adjacency.astype(np.float64)
    for begin, end in pairwise(task.starts):
        own = adjacency[begin:end, begin:end].toarray()
        degree = np.maximum(own.sum(axis=1), 1.0)
        _, vectors = np.linalg.eigh(own / np.sqrt(degree[:, None] * degree[None, :]))
        k = min(out.shape[1], end - begin)
        out[begin:end, :k] = vectors[:, ::-1][:, :k] * np.sqrt(end - begin)
    return out


def eigenvectors(graph: Graph, count: int, seed: int = 0) -> np.ndarray:
    """Return the ``count`` eigenvectors (V, count) of the normalised Laplacian with the smallest eigenvalues, each
    scaled to unit mean square; padded with zeros where the graph has fewer."""
    view = graph.undirected
    n = len(view)
    k = min(count, n - 2)
    out = np.zeros((n, count), dtype=np.float32)
    if k < 1:
        return out
    adjacency = view.adjacency.astype(np.float64)
    degree = np.maximum(np.asarray(adjacency.sum(axis=1)).ravel(), 1.0)
    scale = sparse.diags(1 / np.sqrt(degree))
    start = np.random.default_rng(seed).normal(size=n)
    # The largest of D^-1/2 A D^-1/2 are the smallest of the Laplacian, and Lanczos needs no factorisation for them.
    _, vectors = linalg.eigsh(scale @ adjacency @ scale, k=k, which="LA", v0=start, tol=1e-3)
    out[:, :k] = vectors[:, ::-1] * np.sqrt(n)
    return out
