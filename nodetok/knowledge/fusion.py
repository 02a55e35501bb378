"""Fusion of the scores of several parts, with weights that depend on the question.

    score(q, e) = sum over parts k of  w_k * exp(d[label(q), k] + theta[:, k] . traits(q)) * s_k(q, e)

The label is the relation and its direction. All parameters are fitted by maximum likelihood to validation questions; d
and theta are penalised, so a relation with few questions has the common weights w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from setrec.ragged import Ragged

CANDIDATES = 500
"""Number of candidates of a question that the fit compares."""
PENALTY, PENALTY_OF_COMMON = 5.0, 0.1
STEPS = 60


class Fusion(nn.Module):
    """Weights of ``names`` for questions with ``labels`` labels and ``traits`` traits."""

    def __init__(self, names: Sequence[str], start: Sequence[float], labels: int, traits: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.common = nn.Parameter(torch.tensor(start).log())
        self.by_label = nn.Parameter(torch.zeros(labels, len(names)))
        self.by_trait = nn.Parameter(torch.zeros(traits, len(names)))
        self.used: Tensor
        self.register_buffer("used", torch.ones(len(names)))
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(2, traits))

    @property
    def weights(self) -> dict[str, float]:
        """The common weight of each part; 0 if it is not used."""
        return dict(zip(self.names, (self.common.exp() * self.used).tolist(), strict=True))

    def forward(self, label: Tensor, traits: Tensor) -> Tensor:
        """Return the weights (Q, K) for labels (Q,) and traits (Q, F)."""
        own = (traits - self.centre[0]) / self.centre[1].clamp(min=1e-6)
        return torch.exp(self.common + self.by_label[label] + own @ self.by_trait) * self.used

    @torch.no_grad()
    def mix(self, parts: dict[str, np.ndarray], label: np.ndarray, traits: np.ndarray, without: str = "") -> np.ndarray:
        """Return the weighted sum, float32 (Q, V), of the parts, perhaps without one."""
        weights = self(torch.from_numpy(label), torch.from_numpy(traits)).numpy()
        total = np.zeros_like(parts[self.names[0]])
        for k, name in enumerate(self.names):
            if name != without and self.used[k]:
                total += weights[:, k, None] * parts[name]
        return total

    def fit(self, sample: Sample) -> float:
        """Fit to validation questions, leave out parts without which the mean reciprocal rank is not lower, and return
        it."""
        self._maximise(sample)
        best = self.mean_reciprocal_rank(sample)
        for part in range(len(self.names)):
            if self.used.sum() > 1:
                self.used[part] = 0.0
                value = self.mean_reciprocal_rank(sample)
                best, self.used[part] = (value, 0.0) if value >= best else (best, 1.0)
        if not self.used.all():
            self._maximise(sample)
        return self.mean_reciprocal_rank(sample)

    def _maximise(self, sample: Sample) -> None:
        own = sample.traits
        self.centre.copy_(torch.stack([own.mean(dim=0), own.std(dim=0, correction=0)]))
        start = self.common.detach().clone()
        optimizer = torch.optim.LBFGS(self.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            free = self.by_label.square().sum() + self.by_trait.square().sum()
            penalty = PENALTY * free + PENALTY_OF_COMMON * (self.common - start).square().sum()
            value = cross_entropy(self._of(sample), sample.place) + penalty / len(sample.place)
            value.backward()
            return value

        optimizer.step(loss)

    def _of(self, sample: Sample) -> Tensor:
        """Return scores (Q, C) of the candidates of a sample."""
        scores = torch.einsum("qck,qk->qc", sample.scores, self(sample.label, sample.traits))
        return scores.masked_fill(~sample.allowed, -torch.inf)

    @torch.no_grad()
    def mean_reciprocal_rank(self, sample: Sample) -> float:
        """Return the mean reciprocal rank of the answers of a sample among its candidates."""
        scores = self._of(sample)
        own = scores.gather(1, sample.place[:, None])
        rank = 0.5 + (scores > own).sum(dim=1) + (scores == own).sum(dim=1) / 2
        return float((1 / rank).mean())


@dataclass(frozen=True, eq=False)
class Sample:
    """Questions to fit to: scores (Q, C, K) of the best candidates, whether each is ``allowed`` (Q, C), the place (Q,)
    of the answer among them, labels (Q,) and traits (Q, F)."""

    scores: Tensor
    allowed: Tensor
    place: Tensor
    label: Tensor
    traits: Tensor

    @classmethod
    def of(
        cls,
        parts: dict[str, np.ndarray],
        total: np.ndarray,
        answers: np.ndarray,
        known: Ragged,
        label: np.ndarray,
        traits: np.ndarray,
    ) -> Sample:
        """Select the candidates that score best by ``total`` (Q, V); the other ``known`` answers are not allowed."""
        rows = np.arange(len(answers))
        total[known.row_of_value, known.values] = -np.inf
        total[rows, answers] = np.inf
        count = min(CANDIDATES, total.shape[1])
        best = np.argpartition(-total, count - 1, axis=1)[:, :count]
        scores = np.stack([np.take_along_axis(one, best, axis=1) for one in parts.values()], axis=2)
        allowed = np.isfinite(np.take_along_axis(total, best, axis=1)) | (best == answers[:, None])
        place = (best == answers[:, None]).argmax(axis=1)
        return cls(*(torch.from_numpy(x) for x in (scores, allowed, place, label, traits)))

    @classmethod
    def joined(cls, samples: Sequence[Sample]) -> Sample:
        """Return the questions of several samples together."""
        return cls(*(torch.cat([getattr(one, field.name) for one in samples]) for field in fields(cls)))
