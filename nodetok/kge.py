"""DistMult and ComplEx with a full softmax: a baseline of knowledge-graph completion, and a component of our model.

The models are trained in a softmax over all entities, because the one sampled negative per triple of PyTorch Geometric
would make a weak baseline (Ruffinelli et al. 2020).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import dropout

from setrec.epochs import Epochs
from setrec.errors import DataError
from setrec.precision import resolve
from setrec.ragged import Ragged
from setrec.settings import Precision, Settings

LOGITS_AT_ONCE = 1 << 23
"""Number of logits in memory at a time: 32 MiB in float32. Fewer rows would read the table of entities too often: with
40,000 entities of width 128, 200 rows at a time take a third of the time of 12."""


Kind = Literal["distmult", "complex"]


class KgeSettings(Settings):
    """Settings of an embedding. ``batch``: questions, each with all its answers (``None``: a hundredth of them, from
    256 to 1,024). ``dropout``: of query vectors.
    ``decay`` weighs the cubed norm of the embeddings used (N3, Lacroix et al. 2018). ``patience``: epochs without a
    better filtered MRR on ``valid_sample`` validation triples."""

    kind: Kind = "distmult"
    width: int = Field(256, ge=2, multiple_of=2)
    epochs: int = Field(15, ge=1)
    patience: int = Field(3, ge=1)
    batch: int | None = Field(None, ge=1)
    learning_rate: float = Field(0.1, gt=0)
    dropout: float = Field(0.2, ge=0, lt=1)
    decay: float = Field(0.015, ge=0)
    valid_sample: int = Field(500, ge=1)
    precision: Precision = "auto"


class KgeRanker(nn.Module):
    """An embedding of entities and relations. The score of a triple is <h, r, t> in DistMult, which does not
    distinguish head and tail, and Re<h, r, conj(t)> in ComplEx (Trouillon et al. 2016), where the two halves of a row
    are the real and the imaginary part, and the question for the head has relation vectors of its own."""

    def __init__(self, entities: int, relations: int, width: int, kind: Kind = "distmult") -> None:
        super().__init__()
        self.relations, self.width, self.kind = relations, width, kind
        self.entity = nn.Embedding(entities, width)
        self.relation = nn.Embedding(relations if kind == "distmult" else 2 * relations, width)
        self.best_epoch = 0
        """Epoch of the weights; set by :func:`train_kge`."""
        for weight in self.parameters():  # small, as Adagrad's first steps are long
            nn.init.normal_(weight, std=1e-2)

    def relation_of(self, queries: Tensor) -> Tensor:
        """Return the rows (B,) of relation vectors for queries (B, 3)."""
        rows: Tensor = queries[:, 1] + (0 if self.kind == "distmult" else self.relations * queries[:, 2])
        return rows

    def queries(self, queries: Tensor) -> Tensor:
        """Return query vectors (B, width), whose inner products with :attr:`entities` are the scores, for (B, 3)."""
        known, relation = self.entity(queries[:, 0]), self.relation(self.relation_of(queries))
        if self.kind == "distmult":
            product: Tensor = known * relation
            return product
        (a, b), (c, d) = known.chunk(2, dim=1), relation.chunk(2, dim=1)
        return torch.cat([a * c - b * d, a * d + b * c], dim=1)

    @property
    def entities(self) -> Tensor:
        """Embeddings of all entities, (V, width)."""
        table: Tensor = self.entity.weight
        return table

    def cubed_norms(self, known: Tensor, relation: Tensor, answer: Tensor) -> Tensor:
        """Return the sum over triples (T,) of |h|^3 + |r|^3 + |t|^3; ``relation``: rows of relation vectors."""
        used = torch.cat([self.entity(torch.cat([known, answer])), self.relation(relation)])
        if self.kind == "complex":
            used = (used.view(len(used), 2, -1).square().sum(dim=1) + 1e-12).sqrt()  # a gradient at zero
        return used.abs().pow(3).sum()

    @torch.no_grad()
    def scores(self, queries: np.ndarray) -> np.ndarray:
        """Return scores, float32 (B, V), of all entities for rows [given entity, relation, 0 for the tail or 1 for the
        head].

        Raises:
            DataError: queries of another shape, or with rows outside the entities or relations.
        """
        _refuse_outside(queries, (len(self.entities), self.relations, 2), "queries")
        return (self.queries(torch.from_numpy(queries).long()) @ self.entities.T).numpy()


@dataclass(frozen=True)
class Questions:
    """Distinct questions [given entity, relation, direction], int64 (Q, 3), and their answers."""

    rows: np.ndarray
    answers: Ragged

    @classmethod
    def of(cls, triples: np.ndarray, *, directed: bool = True) -> Questions:
        """Build both questions of each triple; without ``directed`` the two directions are not distinguished."""
        head, relation, tail = triples.T.astype(np.int64)
        towards = np.repeat([0, int(directed)], len(triples))
        rows = np.stack([np.concatenate([head, tail]), np.tile(relation, 2), towards], axis=1)
        distinct, where = np.unique(rows, axis=0, return_inverse=True)
        order = np.argsort(where.ravel(), kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(where.ravel(), minlength=len(distinct)))])
        return cls(distinct, Ragged(np.concatenate([tail, head])[order], offsets))

    def take(self, rows: np.ndarray) -> Questions:
        """The given rows, in the given order."""
        return Questions(self.rows[rows], self.answers.take(rows))


def train_kge(
    triples: np.ndarray,
    entities: int,
    relations: int,
    valid: np.ndarray,
    seed: int,
    settings: KgeSettings | None = None,
    on_epoch: Callable[[int, int], None] | None = None,
    seconds: float = math.inf,
) -> KgeRanker:
    """Train on ``triples`` int (T, 3) [head, relation, tail]; the epoch is chosen by filtered MRR on ``valid`` (N, 3).

    ``on_epoch`` is called with the epoch, from 1, and the maximum number of epochs. Without validation triples the last
    epoch is kept.
    Training ends after ``seconds`` of CPU time, also within an epoch, which counts like a whole one.

    Raises:
        DataError: no triples, triples of another shape, or with rows outside the entities or relations.
    """
    s = settings or KgeSettings()
    _refuse_outside(triples, (entities, relations, entities), "triples")
    _refuse_outside(valid, (entities, relations, entities), "validation triples")
    if len(triples) == 0:
        raise DataError("no triples to train on")
    torch.manual_seed(seed)
    ranker = KgeRanker(entities, relations, s.width, s.kind)
    optimizer = torch.optim.Adagrad(ranker.parameters(), s.learning_rate)
    questions = Questions.of(triples, directed=s.kind != "distmult")
    held = held_out(triples, valid, s.valid_sample, seed)
    run = Epochs(ranker, s.epochs, s.patience, seconds)
    for epoch in run:
        _epoch(ranker, questions, optimizer, s, run)
        run.finish(filtered_mrr(ranker, *held) if len(valid) else epoch)
        if on_epoch is not None:
            on_epoch(epoch, s.epochs)
    run.restore()
    ranker.best_epoch = run.best_epoch
    return ranker


def train_ensemble(
    triples: np.ndarray,
    entities: int,
    relations: int,
    valid: np.ndarray,
    seed: int,
    settings: KgeSettings,
    members: int,
    seconds: float = math.inf,
) -> KgeRanker:
    """Train embeddings that differ in their seed only, as many of ``members`` as ``seconds`` of CPU time allow, and
    return them as one, whose scores are the means of theirs. Members after the first are trained for as many epochs as
    its validation preferred.

    Raises:
        DataError: as :func:`train_kge`.
    """
    began, trained, cost = time.process_time(), list[KgeRanker](), 0.0
    while len(trained) < members:
        left = seconds - (time.process_time() - began)
        if trained and left < cost:
            break
        member = train_kge(triples, entities, relations, valid, seed + 1000 * len(trained), settings, seconds=left)
        if not trained:
            share = member.best_epoch / min(settings.epochs, member.best_epoch + settings.patience)
            cost = share * (time.process_time() - began)
            settings = settings.model_copy(update={"epochs": member.best_epoch})
        trained.append(member)
    return side_by_side(trained)


@torch.no_grad()
def side_by_side(rankers: Sequence[KgeRanker]) -> KgeRanker:
    """Return embeddings of one kind as a single one, whose scores are the means of theirs: inner products of
    concatenated vectors add up."""
    first, width = rankers[0], sum(ranker.width for ranker in rankers)
    made = KgeRanker(len(first.entities), first.relations, width, first.kind)
    parts = 2 if first.kind == "complex" else 1  # real parts come before imaginary ones
    for own, of in ((made.entity, [r.entity for r in rankers]), (made.relation, [r.relation for r in rankers])):
        split = [one.weight.chunk(parts, dim=1) for one in of]
        own.weight.copy_(torch.cat([part[half] for half in range(parts) for part in split], dim=1))
    made.relation.weight /= len(rankers)
    made.best_epoch = first.best_epoch
    return made.eval()


def filtered_mrr(ranker: KgeRanker, questions: np.ndarray, answers: np.ndarray, known: Ragged) -> float:
    """Return the mean reciprocal rank of ``answers`` (B,) to ``questions`` (B, 3) among all entities without the other
    ``known`` answers.

    Half of the tied candidates count as ranked before the answer.
    """
    ranks = []
    for rows in np.array_split(np.arange(len(questions)), math.ceil(len(questions) / 256)):
        ranks.append(filtered_ranks(ranker.scores(questions[rows]), answers[rows], known.take(rows)))
    return float((1 / np.concatenate(ranks)).mean())


def filtered_ranks(scores: np.ndarray, answers: np.ndarray, known: Ragged) -> np.ndarray:
    """Return the ranks of ``answers`` (B,) by ``scores`` (B, V), which are modified, without the other ``known``
    answers."""
    own = scores[np.arange(len(scores)), answers][:, None].copy()
    scores[known.row_of_value, known.values] = -np.inf
    # Not "scores > own": NaN would rank first.
    ranks: np.ndarray = 1 + (~(scores <= own)).sum(axis=1) + (scores == own).sum(axis=1) / 2
    return ranks


class _AnswersCrossEntropy(torch.autograd.Function):
    """Sum over answers of -log softmax(queries @ entities.T)[owner, answer], loss and gradients taken together.

    :func:`setrec.training.softmax.catalogue_cross_entropy` for rows with several right answers: one row of logits for
    all.
    Shapes: queries (B, w), entities (V, w), owner and answer int64 (A,).
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, entities: Tensor, owner: Tensor, answer: Tensor, product: torch.dtype
    ) -> Tensor:
        count = torch.bincount(owner, minlength=len(queries))[:, None].float()
        narrow, own = entities.to(product), entities[answer]
        by_queries, by_entities = torch.empty_like(queries), torch.zeros_like(entities)
        loss = -(queries[owner] * own).sum(dtype=torch.float64)
        for rows in torch.arange(len(queries)).split(max(1, LOGITS_AT_ONCE // len(entities))):
            q, n = queries[rows], count[rows]
            logits = (q.to(product) @ narrow.T).float()
            top = logits.amax(dim=1, keepdim=True)
            mass = logits.sub_(top).exp_()
            total = mass.sum(dim=1, keepdim=True)
            loss += (n * (total.log() + top)).sum()
            mass = mass.to(product)
            by_queries[rows] = (mass @ narrow).float() * (n / total)
            by_entities += (mass.T @ (q * (n / total)).to(product)).float()
        by_queries.index_add_(0, owner, own, alpha=-1.0)
        by_entities.index_add_(0, answer, queries[owner], alpha=-1.0)
        ctx.save_for_backward(by_queries, by_entities)
        return loss.to(queries.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        by_queries, by_entities = ctx.saved_tensors
        return grads[0] * by_queries, grads[0] * by_entities, None, None, None


def _epoch(
    ranker: KgeRanker, questions: Questions, optimizer: torch.optim.Optimizer, s: KgeSettings, run: Epochs
) -> None:
    """Train for one pass over all questions, or until the time limit."""
    product = torch.bfloat16 if resolve(s.precision, torch.device("cpu")) == "bf16" else torch.float32
    batch_size = s.batch or min(1024, max(256, len(questions.rows) // 100))
    for rows in torch.randperm(len(questions.rows)).split(batch_size):
        if run.out_of_time:
            break
        batch = questions.take(rows.numpy())
        asked = torch.from_numpy(batch.rows)
        owner, answer = torch.from_numpy(batch.answers.row_of_value), torch.from_numpy(batch.answers.values)
        known, relation = asked[owner, 0], ranker.relation_of(asked)[owner]
        queries = dropout(ranker.queries(asked), s.dropout)
        loss = _AnswersCrossEntropy.apply(queries, ranker.entities, owner, answer, product)
        loss = (loss + s.decay * ranker.cubed_norms(known, relation, answer)) / len(answer)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def held_out(triples: np.ndarray, valid: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, Ragged]:
    """Return questions (B, 3) of ``count`` validation triples, their answers (B,), and all known answers to each."""
    known = Questions.of(np.concatenate([triples, valid]))
    drawn = Questions.of(valid[np.random.default_rng(seed).permutation(len(valid))[:count]])
    row_of = {tuple(row): index for index, row in enumerate(known.rows.tolist())}
    questions = np.repeat(drawn.rows, drawn.answers.lengths, axis=0)
    rows = np.array([row_of[tuple(row)] for row in questions.tolist()], dtype=np.int64)
    return questions, drawn.answers.values, known.answers.take(rows)


def _refuse_outside(rows: np.ndarray, sizes: tuple[int, int, int], name: str) -> None:
    """Raise a DataError unless ``rows`` are integers (T, 3) within ``sizes``."""
    if rows.ndim != 2 or rows.shape[1] != 3 or rows.dtype.kind not in "iu":
        raise DataError(f"{name} must be integers of shape (T, 3), not {rows.dtype} {rows.shape}")
    if len(rows) and (rows.min() < 0 or (rows.max(axis=0) >= sizes).any()):
        raise DataError(
            f"{name} must lie within {sizes}, but reach from {rows.min()} to {tuple(rows.max(axis=0).tolist())}"
        )
