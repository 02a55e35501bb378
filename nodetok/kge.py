"""What a graph language model has to beat at knowledge-graph completion: PyTorch Geometric's embeddings, well trained.

The models are the library's; the loss is a full softmax over all entities with a relation of its own for each
direction, because the library's few sampled negatives would make a weak opponent.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch_geometric.nn import ComplEx, DistMult

from setrec.errors import DataError
from setrec.settings import Settings
from setrec.softmax import catalogue_cross_entropy

Kind = Literal["distmult", "complex"]


class KgeSettings(Settings):
    """Width in numbers (a complex number counts twice); ``decay`` weighs the cubed norm of the embeddings used (N3,
    Lacroix et al. 2018)."""

    width: int = Field(256, ge=2)
    epochs: int = Field(15, ge=1)
    batch: int = Field(1024, ge=1)
    learning_rate: float = Field(0.1, gt=0)
    decay: float = Field(0.05, ge=0)


class KgeRanker:
    """A trained embedding model; relation r + R is relation r against its direction."""

    def __init__(self, kind: Kind, model: DistMult | ComplEx, relations: int) -> None:
        self.kind, self.model, self.relations = kind, model, relations

    def queries(self, known: Tensor, relation: Tensor) -> Tensor:
        """What the inner product with :meth:`entities` scores, (B, width)."""
        h, r = self.model.node_emb(known), self.model.rel_emb(relation)
        if self.kind == "distmult":
            return h * r
        a, b = self.model.node_emb_im(known), self.model.rel_emb_im(relation)
        return torch.cat([h * r - a * b, h * b + a * r], dim=1)

    def entities(self) -> Tensor:
        """Embeddings of all entities, (V, width)."""
        if self.kind == "distmult":
            return self.model.node_emb.weight
        return torch.cat([self.model.node_emb.weight, self.model.node_emb_im.weight], dim=1)

    @torch.no_grad()
    def scores(self, queries: np.ndarray) -> np.ndarray:
        """Scores (B, V) of all entities for rows [known entity, relation, 0 for the tail or 1 for the head]."""
        known, relation, direction = torch.from_numpy(np.ascontiguousarray(queries.T)).long()
        return (self.queries(known, relation + direction * self.relations) @ self.entities().T).numpy()


def train_kge(
    kind: Kind,
    triples: np.ndarray,
    entities: int,
    relations: int,
    valid: np.ndarray,
    seed: int,
    settings: KgeSettings | None = None,
) -> KgeRanker:
    """Train on triples int (T, 3) [head, relation, tail]; the epoch is chosen by the loss on ``valid``.

    Raises:
        DataError: triples of another shape, or with rows outside the entities or relations.
    """
    for given in (triples, valid):
        if given.ndim != 2 or given.shape[1] != 3:
            raise DataError(f"triples must have the shape (T, 3), not {given.shape}")
        if len(given) and (given.min() < 0 or given[:, [0, 2]].max() >= entities or given[:, 1].max() >= relations):
            raise DataError(f"a triple lies outside {entities} entities and {relations} relations")
    s = settings or KgeSettings()
    torch.manual_seed(seed)
    width = s.width if kind == "distmult" else s.width // 2
    model = {"distmult": DistMult, "complex": ComplEx}[kind](entities, 2 * relations, width)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=1e-2)
    ranker = KgeRanker(kind, model, relations)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=s.learning_rate)
    fitted, held = _both_ways(triples, relations), _both_ways(valid, relations)
    best, weights = np.inf, {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(s.epochs):
        for rows in torch.randperm(len(fitted)).split(s.batch):
            known, relation, answer = fitted[rows].T
            queries = ranker.queries(known, relation)
            loss = catalogue_cross_entropy(queries, ranker.entities(), answer) / len(rows)
            used = (model.node_emb(known), model.rel_emb(relation), model.node_emb(answer))
            loss = loss + s.decay * sum(part.abs().pow(3).sum() for part in used) / len(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            known, relation, answer = held.T
            now = float(catalogue_cross_entropy(ranker.queries(known, relation), ranker.entities(), answer))
        if now < best:
            best, weights = now, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    return ranker


def _both_ways(triples: np.ndarray, relations: int) -> Tensor:
    """[known, relation, answer] for tails and for heads."""
    head, relation, tail = torch.from_numpy(np.ascontiguousarray(triples.T)).long()
    return torch.cat(
        [torch.stack([head, relation, tail], dim=1), torch.stack([tail, relation + relations, head], dim=1)]
    )
