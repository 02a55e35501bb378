"""Wordings of the questions that models are trained on, and questions outside of them, read from ``wordings.yaml``.

The question matcher is fitted on ``train`` and ``valid``, its threshold by
cross-validation; ``test`` is for evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import yaml


@dataclass(frozen=True)
class Wordings:
    """Distinct wordings of one question, split into parts."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def split(cls, texts: Sequence[str]) -> Wordings:
        """Assign four of every six wordings to training and one each to validation and test."""
        parts: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for row, text in enumerate(texts):
            parts[{4: 1, 5: 2}.get(row % 6, 0)].append(text)
        return cls(*(tuple(part) for part in parts.values()))

    @property
    def every(self) -> tuple[str, ...]:
        """Return the wordings of all parts."""
        return (*self.train, *self.valid, *self.test)


_DATA = yaml.load(resources.files(__package__).joinpath("wordings.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
TEMPLATES: dict[str, str] = _DATA["templates"]
"""Structural questions as models read them."""
STRUCTURE: dict[str, tuple[str, ...]] = {name: tuple(texts) for name, texts in _DATA["structure"].items()}
"""Other wordings of every structural question, the order of the slots being that of the template."""
CLASSIFICATION: tuple[str, ...] = tuple(_DATA["classification"])
EDGE_CLASSIFICATION: tuple[str, ...] = tuple(_DATA["edge_classification"])
OUTSIDE: tuple[str, ...] = tuple(_DATA["outside"])
"""Questions outside of these: other subjects, other tasks on graphs, commands."""


def plain_question(prompt: str) -> str:
    """Return a prompt without the request for an answer at its end."""
    return prompt.removesuffix("answer :").rstrip()
