"""The search space: distributions of values by configuration key, drawn from a seed."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from setrec.settings import Seed, Settings

SECTIONS = ("training", "loss", "model", "sasrec")
"""Sections whose keys may be searched. All others define the data, or do not affect training."""

Value = bool | int | float | str | None


class _Range(Settings):
    @model_validator(mode="after")
    def _low_lies_below_high(self) -> _Range:
        low, high = getattr(self, "low", 0), getattr(self, "high", 1)
        if not low < high:
            raise ValueError(f"low must lie below high, not {low} and {high}")
        return self


class Uniform(_Range):
    """A number between ``low`` and ``high``, uniformly distributed."""

    kind: Literal["uniform"]
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> Value:
        """One value."""
        return float(rng.uniform(self.low, self.high))


class LogUniform(_Range):
    """A positive number whose logarithm is uniform: for rates, where ratios matter and not differences."""

    kind: Literal["loguniform"]
    low: float = Field(gt=0)
    high: float

    def draw(self, rng: np.random.Generator) -> Value:
        """One value."""
        return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))


class Integer(_Range):
    """A whole number from ``low`` to ``high``, both included, in steps of ``step`` from ``low``."""

    kind: Literal["integer"]
    low: int
    high: int
    step: int = Field(1, ge=1)

    def draw(self, rng: np.random.Generator) -> Value:
        """One value."""
        return self.low + self.step * int(rng.integers((self.high - self.low) // self.step + 1))


class Choice(Settings):
    """One of ``values``, all equally likely."""

    kind: Literal["choice"]
    values: tuple[Value, ...] = Field(min_length=1)

    def draw(self, rng: np.random.Generator) -> Value:
        """One value."""
        return self.values[int(rng.integers(len(self.values)))]


Distribution = Annotated[Uniform | LogUniform | Integer | Choice, Field(discriminator="kind")]


class TuneSettings(Settings):
    """The search of ``setrec tune``: random settings from ``space``; worse trials are stopped early (ASHA).

    ``space``: by key of this configuration, such as ``training.learning_rate``; keys of ``sasrec`` cost each trial a
    training of the collaborative model, all others share one. ``trials``: number of settings, the first of which is the
    configuration itself; memory is that of one training for each concurrent trial. ``grace_epochs``: epochs of every
    trial. After these, and after each ``reduction`` times as many, a trial continues only if it is among the best
    1/``reduction`` of the trials so far. ``minutes``: time limit of the search; ``--resume`` continues it. ``seed``
    draws the settings.
    """

    space: dict[str, Distribution] = Field(default_factory=dict)
    trials: int = Field(8, ge=1)
    grace_epochs: int = Field(2, ge=1)
    reduction: float = Field(3.0, gt=1)
    minutes: float = Field(30.0, gt=0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _keys_may_be_searched(self) -> TuneSettings:
        for key in self.space:
            section, dot, _ = key.partition(".")
            if not dot or section not in SECTIONS:
                raise ValueError(f"space: '{key}' is not a key of {', '.join(SECTIONS)}")
        return self

    def draw(self, number: int) -> dict[str, Any]:
        """Return the settings of a trial, by key; empty for trial 0, which is the configuration itself."""
        if number == 0:
            return {}
        rng = np.random.default_rng([self.seed, number])
        return {key: self.space[key].draw(rng) for key in sorted(self.space)}
