"""Answers of similar entities: a linear autoencoder over facts, in its dual form and with a low rank.

A fact of an entity is a relation, a direction and the entity at the other end. With X (V, facts), each fact weighted by
sqrt(log(V / its frequency)), the fit of ridge regression is H = X X^T (X X^T + lambda I)^-1, and H[a, b] says how much
the facts of entity b count for entity a. Dividing by 1 - H[a, a] leaves an entity's own facts out, like the diagonal of
EASE (Steck 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

RANK = 512
RIDGE = 0.3
"""Lambda as a multiple of the mean squared length of the rows of X."""


@dataclass(frozen=True, eq=False)
class SimilarEntities:
    """H = ``factors`` (V, k) diag(``shares`` (k,)) ``factors``^T, and the training triples (T, 3)."""

    factors: np.ndarray
    shares: np.ndarray
    triples: np.ndarray
    relations: int

    @classmethod
    def fit(cls, triples: np.ndarray, entities: int, relations: int, seed: int) -> SimilarEntities:
        """Decompose the facts of the training ``triples``."""
        source, label, end = _arcs(triples, relations)
        facts, which, count = np.unique(label * entities + end, return_inverse=True, return_counts=True)
        which = which.ravel()
        shared = count[which] > 1  # a fact of one entity says nothing about others
        weight = np.sqrt(np.log(entities / count))[which]
        shape = (entities, len(facts))
        X = sp.csr_matrix((weight[shared], (source[shared], which[shared])), shape=shape, dtype=np.float32)
        rank = min(RANK, entities, len(facts))
        U, s, _ = randomized_svd(X, rank, n_iter=4, random_state=seed)
        ridge = RIDGE * max(float(X.multiply(X).sum()), 1e-9) / entities
        return cls(U.astype(np.float32), (s**2 / (s**2 + ridge)).astype(np.float32), triples, relations)

    @cached_property
    def _answers(self) -> list[sp.csr_matrix]:
        """Training answers (V, V) of every label."""
        source, label, end = _arcs(self.triples, self.relations)
        V = len(self.factors)
        of = [np.flatnonzero(label == number) for number in range(2 * self.relations)]
        return [sp.csr_matrix((np.ones(len(r), np.float32), (source[r], end[r])), shape=(V, V)) for r in of]

    @cached_property
    def _rest(self) -> np.ndarray:
        """1 - H[a, a] of every entity, (V,)."""
        rest: np.ndarray = np.maximum(1 - (self.factors**2 * self.shares).sum(axis=1), 1e-3)
        return rest

    def counts(self, known: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of training answers to questions and of arcs of their known entities, (Q,) each."""
        degrees = self._degrees
        return degrees[label, known], degrees[:, known].sum(axis=0)

    @cached_property
    def _degrees(self) -> np.ndarray:
        return np.stack([np.diff(arcs.indptr) for arcs in self._answers])

    def scores(self, questions: np.ndarray) -> dict[str, np.ndarray]:
        """Return two scores, float32 (Q, V), for questions (Q, 3): how many answers of entities similar to the known
        one a candidate is, and how similar it is to the known answers."""
        known, label = questions[:, 0], questions[:, 1] + self.relations * questions[:, 2]
        shape = (len(questions), len(self.factors))
        entities, answers = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for number in np.unique(label):
            rows = np.flatnonzero(label == number)
            own, arcs = known[rows], self._answers[number]
            similar = (self.factors[own] * self.shares) @ self.factors.T / self._rest[own, None]
            entities[rows] = (arcs.T @ similar.T).T
            answers[rows] = ((arcs[own] @ self.factors) * self.shares) @ self.factors.T / self._rest
        return {"similar_entities": entities, "similar_answers": answers}


def _arcs(triples: np.ndarray, relations: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return source, label and end of both directions of every triple, int64 (2T,)."""
    head, relation, tail = np.unique(triples, axis=0).astype(np.int64).T
    return np.concatenate([head, tail]), np.concatenate([relation, relation + relations]), np.concatenate([tail, head])
