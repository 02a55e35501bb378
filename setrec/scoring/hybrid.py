"""The one object that turns a history into scores: validation, ranking tables, batches and the endpoint all use it.

    score(history, item) =  model(history, item)                              in the unit of log-probabilities
                          + sum over components c of w_c c(history, item)     0 for items of the history
                          + repeat bias                                       if the item is in the history

Everything is added before any softmax, so sources that agree reinforce each other (Hinton 2002: products of experts).
Items without training interactions have weights of their own for the model and for components of content, and a level.

There are two routes to the same scores: :meth:`HybridScorer.__call__`, of all items (evaluation), and
:meth:`HybridScorer.parts`, of a handful of rows (serving).
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
"""By name the entries of components, see :class:`setrec.scoring.registry.Component`."""
MODEL, REPEATS, LEVEL = "model", "repeats", "new_item"
"""Names of the terms that are no registered component."""


class NewItemWeights(Settings):
    """Weights for items without training interactions: of the ``model``'s scores, of ``components`` by name (others
    keep their weight), and a ``level`` that is added."""

    model: FiniteFloat = 1.0
    components: dict[str, FiniteFloat] = Field(default_factory=dict)
    level: FiniteFloat = 0.0


class HybridWeights(Settings):
    """What a weight search chose. ``slots``: weight of each slot kind of the model, divided by the ``temperature`` of
    its scores; empty where there is no model. ``components``: weights by name; those left out are 0."""

    slots: dict[str, FiniteFloat] = Field(default_factory=dict)
    temperature: FiniteFloat = Field(1.0, gt=0)
    components: dict[str, FiniteFloat] = Field(default_factory=dict)
    new_items: NewItemWeights = NewItemWeights()

    @property
    def used(self) -> tuple[str, ...]:
        """The components that have a weight for any item, in the registry's order."""
        new = self.new_items.components
        return tuple(name for name in registry.kinds() if self.components.get(name) or new.get(name))

    def of(self, name: str, new: np.ndarray) -> np.ndarray:
        """The weight of a component for items of these flags, ``new`` bool (...), float32."""
        weight = self.components.get(name, 0.0)
        return np.where(new, np.float32(self.new_items.components.get(name, weight)), np.float32(weight))


@dataclass(frozen=True)
class HybridScorer:
    """The score above.

    Args:
        model: the model's term; ``None`` scores without it.
        components: by name, those with a weight.
        weights: see :class:`HybridWeights`.
        new: which items have no training interactions, bool (I,).
    """

    model: ModelTerm | None
    components: Mapping[str, Component]
    weights: HybridWeights
    new: np.ndarray

    @classmethod
    def build(cls, model: ModelTerm | None, weights: HybridWeights, new: np.ndarray, sources: Sources) -> HybridScorer:
        """A scorer whose components are built from ``sources``."""
        return cls(model, build_components(weights.used, sources), weights, new)

    def __call__(self, history: Ragged, entries: Entries | None = None) -> np.ndarray:
        """Scores of all items, float32 (b, I). ``entries`` of the components, where they are at hand."""
        items, new = len(self.new), self.weights.new_items
        total = np.zeros((len(history), items), np.float32) if self.model is None else self.model.dense(history).copy()
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
        """By name what every term gives to the scores of ``rows`` (one row of items per history), float64, one number
        for every item; their sum is the score. ``entries`` of the components, where they are at hand."""
        items, flags = len(self.new), self.new[rows.values]
        found: dict[str, np.ndarray] = {}
        if self.model is not None:
            scale = np.where(flags, self.weights.new_items.model, 1.0)
            found |= {kind: scale * part for kind, part in self.model.parts(history, rows).items()}
        for name, (places, values) in (self.entries(history) if entries is None else entries).items():
            found[name] = self.weights.of(name, flags).astype(np.float64) * lookup(places, values, rows, items)
        if self.weights.new_items.level:
            found[LEVEL] = np.where(flags, self.weights.new_items.level, 0.0)
        if self.model is not None and self.model.repeat_bias:
            held = np.isin(rows.row_of_value * items + rows.values, _pairs(history, items))
            found[REPEATS] = np.where(held, self.model.repeat_bias, 0.0)
        return found

    def at(self, history: Ragged, rows: Ragged) -> np.ndarray:
        """Scores of ``rows``, float64, one for every item."""
        total: np.ndarray = np.sum(list(self.parts(history, rows).values()), axis=0) + np.zeros(len(rows.values))
        return total

    def entries(self, history: Ragged) -> dict[str, tuple[Ragged, np.ndarray]]:
        """The entries of every component."""
        return {name: component.entries(history) for name, component in self.components.items()}


def build_components(names: tuple[str, ...], sources: Sources) -> dict[str, Component]:
    """The components of these names that the sources have something for."""
    every = registry.kinds()
    built = {name: every[name].build(sources) for name in names}
    return {name: component for name, component in built.items() if component is not None}


def load_components(names: tuple[str, ...], folder: Path) -> dict[str, Component]:
    """Components from ``folder/NAME.safetensors``.

    Raises:
        KeyError: there is no kind of a name.
        OSError, ValueError: a file is missing or damaged.
    """
    every = registry.kinds()
    return {name: every[name].load(folder / f"{name}.safetensors") for name in names}


def _pairs(history: Ragged, items: int) -> np.ndarray:
    """The distinct pairs of row and item of what is read of histories, as ``row * items + item``, in order."""
    history = read(history)
    return np.unique(history.row_of_value * items + history.values)
