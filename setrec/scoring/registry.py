"""Registry of the components that a hybrid score adds to the model, by name.

To add a component, write a module that calls :func:`register`, and import it below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from setrec.ragged import Ragged
from setrec.scoring.item_graph import GraphComponent, Reading
from setrec.scoring.text_similarity import TextFeatures, text_component
from setrec.scoring.transitions import TransitionSettings, transition_component


class Component(Protocol):
    """A term of the hybrid score that is zero for most items. Items of the history have no entry."""

    def entries(self, history: Ragged) -> tuple[Ragged, np.ndarray]:
        """Return the non-zero entries: items int64 in ascending order, one row per history, and their values,
        float32."""
        ...

    def save(self, file: Path) -> None:
        """Write the component to a safetensors file."""
        ...


@dataclass(frozen=True)
class Sources:
    """Data that components are built from: ``histories`` for training, the number of ``items``, and the features of
    their texts, ``None`` without texts."""

    histories: Ragged
    items: int
    texts: TextFeatures | None = None


@dataclass(frozen=True)
class ComponentKind:
    """A kind of component.

    ``build`` returns a component, or ``None`` if the sources lack its data. ``of_content``: it depends on item content,
    not on histories, so it works equally well for items without interactions.
    """

    name: str
    build: Callable[[Sources], Component | None]
    of_content: bool = False
    load: Callable[[Path], Component] = GraphComponent.load


_KINDS: dict[str, ComponentKind] = {}


def register(kind: ComponentKind) -> ComponentKind:
    """Add a kind, which takes part in every subsequent weight search.

    Raises:
        ValueError: the name is taken.
    """
    if kind.name in _KINDS:
        raise ValueError(f"a component named '{kind.name}' is registered already")
    _KINDS[kind.name] = kind
    return kind


def unregister(name: str) -> None:
    """Remove a kind."""
    del _KINDS[name]


def kinds() -> Mapping[str, ComponentKind]:
    """Return all kinds by name, in the order of registration."""
    return dict(_KINDS)


def _transitions(settings: TransitionSettings, reading: Reading) -> Callable[[Sources], Component | None]:
    return lambda sources: transition_component(sources.histories, sources.items, settings, reading)


# The best settings on single splits, of a search on the validation parts of six splits: the first two for data where
# much of the history counts, the last for data where the next item follows from the last few.
register(
    ComponentKind(
        "transitions_near",
        _transitions(TransitionSettings(reach=3, fade=0.5, shrink=3.0, damping=0.5), Reading(last=50, decay=0.8)),
    )
)
register(
    ComponentKind(
        "transitions_wide",
        _transitions(TransitionSettings(reach=8, fade=0.8, shrink=3.0, damping=0.5), Reading(last=50, decay=0.9)),
    )
)
register(
    ComponentKind(
        "transitions_forward",
        _transitions(
            TransitionSettings(reach=8, fade=0.8, backward=0.0, shrink=30.0, damping=1.0), Reading(last=5, decay=0.5)
        ),
    )
)
register(
    ComponentKind(
        "text_similarity",
        lambda sources: None if sources.texts is None else text_component(sources.texts),
        of_content=True,
    )
)
