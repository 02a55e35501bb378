"""Validation users with every term of their scores, which a weight search adds up at many weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from setrec.evaluation import ranking
from setrec.models.item_tokens import COLLABORATIVE
from setrec.ragged import Ragged
from setrec.scoring import registry
from setrec.scoring.item_graph import lookup, scatter
from setrec.scoring.model_scores import ModelScores
from setrec.scoring.registry import Component, Sources
from setrec.scoring.text_similarity import TextFeatures

BATCH = 256


@dataclass(frozen=True)
class Part:
    """Validation users to be ranked: their ``cases``, and the histories ``known`` that components may be built from,
    which do not contain these users' truths. ``timed``: the split is by global time."""

    cases: ranking.Cases
    known: Ragged
    timed: bool


class SearchTable:
    """Validation users in batches, with every term of their scores as tables (b, I) on demand."""

    def __init__(
        self,
        term: ModelScores | None,
        parts: Sequence[Part],
        trained: np.ndarray,
        texts: TextFeatures | None,
        names: Sequence[str],
    ) -> None:
        self.new = ~trained
        self.cases = parts[0].cases
        self.items = len(trained)
        every, content = registry.kinds(), {}
        self.parts: list[dict[str, Component]] = []
        for part in parts:
            sources, built = Sources(part.known, self.items, texts), {}
            for name in names:
                if name not in content:
                    component = every[name].build(sources)
                    if every[name].of_content:
                        content[name] = component
                else:
                    component = content[name]
                if component is not None:
                    built[name] = component
            self.parts.append(built)
        self.kinds = {name: every[name] for name in names if name in self.parts[0]}
        self.batches = [
            (number, *part.cases.batch(start, BATCH))
            for number, part in enumerate(parts)
            for start in range(0, len(part.cases), BATCH)
        ]
        self.has_model = term is not None
        self.slots = {} if term is None else dict(term.model.code_columns)
        self._pretended: np.ndarray | None = None
        self._users = [] if term is None else [term.user_codes(history).clone() for _, history, _ in self.batches]
        self._codes = None if term is None else term.codes

    @property
    def new_truths(self) -> int:
        """Return the number of validation truths that are new items."""
        return sum(int(self.new[truth.values].sum()) for _, _, truth in self.batches)

    def pretend(self, rows: np.ndarray) -> None:
        """Score the items flagged in ``rows``, bool (I,), as if they were not in training."""
        self.new, self._pretended = self.new | rows, rows
        if self._codes is not None and COLLABORATIVE in self.slots:
            self._codes = self._codes.clone()
            self._codes[torch.from_numpy(rows), slice(*self.slots[COLLABORATIVE])] = 0

    def scale(self, kind: str, factor: float) -> None:
        """Multiply the weight of a kind of the model's slots."""
        for users in self._users:
            users[:, slice(*self.slots[kind])] *= factor

    def model(self, batch: int) -> np.ndarray:
        """Return the model's scores, zeros without one."""
        if self._codes is None:
            return np.zeros((len(self.batches[batch][1]), self.items), np.float32)
        with torch.no_grad():
            return np.asarray((self._users[batch] @ self._codes.T).cpu().numpy())

    def slot(self, kind: str, batch: int) -> np.ndarray:
        """Return the part of the model's scores that a kind of slots adds."""
        assert self._codes is not None
        columns = slice(*self.slots[kind])
        with torch.no_grad():
            return np.asarray((self._users[batch][:, columns] @ self._codes[:, columns].T).cpu().numpy())

    def entries(self, name: str, batch: int) -> tuple[Ragged, np.ndarray]:
        """Return the entries of a component."""
        number, history, _ = self.batches[batch]
        return self.parts[number][name].entries(history)

    def component(self, name: str, batch: int) -> np.ndarray:
        """Return a component's values."""
        values = scatter(*self.entries(name, batch), self.items)
        if self._pretended is not None and not self.kinds[name].of_content:
            values[:, self._pretended] = 0
        return values

    def term(self, name: str, batch: int) -> np.ndarray:
        """Return the values of a kind of slots or of a component."""
        return self.slot(name, batch) if name in self.slots else self.component(name, batch)

    def at(self, names: Sequence[str], batch: int, rows: Ragged) -> np.ndarray:
        """Return the values of these terms at ``rows``, one row of items per user, float32 (items, terms)."""
        return np.stack([self._at(name, batch, rows) for name in names], axis=1)

    def _at(self, name: str, batch: int, rows: Ragged) -> np.ndarray:
        if name not in self.slots:
            return lookup(*self.entries(name, batch), rows, self.items)
        assert self._codes is not None
        columns = slice(*self.slots[name])
        users = self._users[batch][torch.from_numpy(rows.row_of_value), columns]
        with torch.no_grad():
            product = (users * self._codes[torch.from_numpy(rows.values).long(), columns]).sum(dim=1)
        return np.asarray(product.cpu().numpy())

    def total(self, components: Mapping[str, float], batch: int) -> np.ndarray:
        """Return the model's scores plus components at these weights."""
        total = self.model(batch).copy()
        for name, weight in components.items():
            total += np.float32(weight) * self.component(name, batch)
        return total

    def ndcg(
        self,
        terms: Callable[[int], Mapping[str, np.ndarray]],
        grid: Sequence[Mapping[str, float]],
        groups: Sequence[ranking.Group] | None = None,
    ) -> list[np.ndarray]:
        """Return NDCG@10 of every user under every weighting of the grid, float (weightings, users), for each of
        ``groups`` (by default all items); a user without a truth in a group has NaN. ``terms`` maps a batch's number to
        its terms."""
        every = np.ones(self.items, dtype=bool)
        groups = groups or [ranking.Group("all", every, every)]
        pools = np.stack([group.candidates for group in groups])
        values: list[list[np.ndarray]] = [[] for _ in groups]
        for number, (_, history, truth) in enumerate(self.batches):
            ranks = ranking.mixed_ranks(terms(number), grid, history, truth, pools, "removed")
            for at, (group, kept) in enumerate(zip(groups, values, strict=True)):
                some = group.truths[truth.values]
                offsets = truth.where(some).offsets
                each = [ranking.user_metrics(Ragged(one[some], offsets), (10,))["ndcg@10"] for one in ranks[:, at]]
                kept.append(np.stack(each))
        return [np.concatenate(one, axis=1) for one in values]
