"""Scores of histories, used by validation, ranking tables, batch jobs and the endpoint.

    score(history, item) =  model(history, item)                              in the unit of log-probabilities
                          + sum over components c of w_c c(history, item)     0 for items of the history
                          + repeat bias                                       if the item is in the history

Everything is added before any softmax, so sources that agree reinforce each other (Hinton 2002: products of experts).
Items without training interactions have separate weights for the model and for content components, and an offset.

Two methods compute the same scores: :meth:`HybridScorer.__call__` for all items (evaluation) and
:meth:`HybridScorer.parts` for a few rows (serving).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field, FiniteFloat

from setrec.data.events import read
from setrec.ragged import Ragged
from setrec.scoring import registry
from setrec.scoring.item_graph import lookup
from setrec.scoring.kernels.histories import add_entries
from setrec.scoring.model_scores import ModelTerm
from setrec.scoring.registry import Component, Sources
from setrec.settings import Settings

Entries = Mapping[str, tuple[Ragged, np.ndarray]]
"""Entries of components by name; see :class:`setrec.scoring.registry.Component`."""
MODEL, REPEATS, LEVEL = "model", "repeats", "new_item"
"""Names of the terms that are not registered components."""


class NewItemWeights(Settings):
    """Weights for items without training interactions: of the ``model``'s scores, of ``components`` by name (others
    keep their weight), and an additive ``level``."""

    model: FiniteFloat = 1.0
    components: dict[str, FiniteFloat] = Field(default_factory=dict)
    level: FiniteFloat = 0.0


class HybridWeights(Settings):
    """Weights chosen by a weight search. ``slots``: weight of each slot kind of the model; empty without a model.
    ``components``: weights by name; those left out are 0. Both are divided by the ``temperature`` of the scores.
    ``slots_alone``: weights of the slot kinds of the model alone, divided by its own temperature, if there are
    components."""

    slots: dict[str, FiniteFloat] = Field(default_factory=dict)
    slots_alone: dict[str, FiniteFloat] = Field(default_factory=dict)
    temperature: FiniteFloat = Field(1.0, gt=0)
    components: dict[str, FiniteFloat] = Field(default_factory=dict)
    new_items: NewItemWeights = NewItemWeights()

    @property
    def of_model_alone(self) -> dict[str, float]:
        """Weights of the slot kinds for scores of the model alone."""
        return self.slots_alone or self.slots

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the components with a weight for any item, in the registry's order."""
        new = self.new_items.components
        return tuple(name for name in registry.kinds() if self.components.get(name) or new.get(name))

    def of(self, name: str, new: np.ndarray) -> np.ndarray:
        """Return the weight of a component for items with flags ``new``, bool (...), as float32."""
        weight = self.components.get(name, 0.0)
        return np.where(new, np.float32(self.new_items.components.get(name, weight)), np.float32(weight))


@dataclass(frozen=True)
class HybridScorer:
    """Scorer of histories; see the module for the formula.

    Args:
        model: the model's term; ``None`` scores without it.
        components: components with a weight, by name.
        weights: see :class:`HybridWeights`.
        new: mask of the items without training interactions, bool (I,).
    """

    model: ModelTerm | None
    components: Mapping[str, Component]
    weights: HybridWeights
    new: np.ndarray

    @classmethod
    def build(cls, model: ModelTerm | None, weights: HybridWeights, new: np.ndarray, sources: Sources) -> HybridScorer:
        """Return a scorer whose components are built from ``sources``."""
        return cls(model, build_components(weights.used, sources), weights, new)

    def __call__(self, history: Ragged, entries: Entries | None = None) -> np.ndarray:
        """Return scores of all items, float32 (b, I). ``entries``: precomputed entries of the components."""
        items, new = len(self.new), self.weights.new_items
        total = np.zeros((len(history), items), np.float32) if self.model is None else self.model.dense(history)
        if new.model != 1.0:
            total[:, self.new] *= np.float32(new.model)
        if new.level:
            total[:, self.new] += np.float32(new.level)
        for name, (places, values) in (self.entries(history) if entries is None else entries).items():
            weight, of_new = self.weights.of(name, np.array([False, True]))
            if weight or of_new:
                add_entries(total, places.values, places.offsets, values, weight, of_new, self.new)
        bias = 0.0 if self.model is None else self.model.repeat_bias
        if bias:
            held = _pairs(history, items)
            total[held // items, held % items] += np.float32(bias)
        return total

    def parts(self, history: Ragged, rows: Ragged, entries: Entries | None = None) -> dict[str, np.ndarray]:
        """Return the contribution of every term, by name, to the scores of ``rows`` (one row of items per history),
        float64, one number per item; their sum is the score. ``entries``: precomputed entries of the components."""
        items, flags = len(self.new), self.new[rows.values]
        terms: dict[str, np.ndarray] = {}
        if self.model is not None:
            scale = np.where(flags, self.weights.new_items.model, 1.0)
            terms |= {kind: scale * part for kind, part in self.model.parts(history, rows).items()}
        for name, (places, values) in (self.entries(history) if entries is None else entries).items():
            terms[name] = self.weights.of(name, flags).astype(np.float64) * lookup(places, values, rows, items)
        if self.weights.new_items.level:
            terms[LEVEL] = np.where(flags, self.weights.new_items.level, 0.0)
        if self.model is not None and self.model.repeat_bias:
            held = np.isin(rows.row_of_value * items + rows.values, _pairs(history, items))
            terms[REPEATS] = np.where(held, self.model.repeat_bias, 0.0)
        return terms

    def at(self, history: Ragged, rows: Ragged) -> np.ndarray:
        """Return scores of ``rows``, float64, one per item."""
        total: np.ndarray = np.sum(list(self.parts(history, rows).values()), axis=0) + np.zeros(len(rows.values))
        return total

    def entries(self, history: Ragged) -> dict[str, tuple[Ragged, np.ndarray]]:
        """Return the entries of every component, by name."""
        return {name: component.entries(history) for name, component in self.components.items()}


def build_components(names: tuple[str, ...], sources: Sources) -> dict[str, Component]:
    """Build the named components for which ``sources`` have data."""
    every = registry.kinds()
    built = {name: every[name].build(sources) for name in names}
    return {name: component for name, component in built.items() if component is not None}


def load_components(names: tuple[str, ...], folder: Path) -> dict[str, Component]:
    """Load components from ``folder/NAME.safetensors``.

    Raises:
        KeyError: a name is not registered.
        OSError, ValueError: a file is missing or damaged.
    """
    every = registry.kinds()
    return {name: every[name].load(folder / f"{name}.safetensors") for name in names}


def _pairs(history: Ragged, items: int) -> np.ndarray:
    """Return the distinct pairs of row and item of the events read, sorted, as ``row * items + item``."""
    history = read(history)
    return np.unique(history.row_of_value * items + history.values)
