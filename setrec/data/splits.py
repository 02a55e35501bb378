"""Splits of interactions into training, validation and test. Warm and cold items follow from the labels (see
``Histories``)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from setrec.settings import Settings

TRAIN, VALID, TEST = 0, 1, 2

NAMES = {"train": TRAIN, "valid": VALID, "val": VALID, "validation": VALID, "test": TEST}


class LeaveOneOut(Settings):
    """Each user's last interaction is for test, the one before for validation.

    Users with fewer than ``min_history`` + 2 interactions are for training only.
    """

    kind: Literal["leave_one_out"] = "leave_one_out"
    min_history: int = Field(default=1, ge=1)


class GlobalTime(Settings):
    """The latest ``test`` share of all interactions is for test, the ``valid`` share before it for validation.

    The cuts are points in time: simultaneous interactions are never separated, so every training time is strictly
    before every validation time, and that before every test time. Shares grow by the ties at a cut.
    """

    kind: Literal["global_time"] = "global_time"
    valid: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _leaves_training(self) -> GlobalTime:
        if self.valid + self.test >= 1:
            raise ValueError("valid + test must stay below 1: nothing would be left to train on")
        return self


class ByColumn(Settings):
    """The column ``Schema.split`` contains train, valid (or val, validation) or test."""

    kind: Literal["column"] = "column"


SplitSettings = Annotated[LeaveOneOut | GlobalTime | ByColumn, Field(discriminator="kind")]


def leave_one_out(offsets: np.ndarray, min_history: int = 1) -> np.ndarray:
    """Return labels, int8, of interactions grouped by user (``offsets`` as in ``Ragged``) and oldest first.

    At least ``min_history`` interactions of a user stay in training before anything is held out; users with fewer than
    ``min_history`` + 2 interactions are for training only.
    """
    labels = np.full(int(offsets[-1]), TRAIN, dtype=np.int8)
    ends = np.asarray(offsets[1:])[np.diff(offsets) >= min_history + 2]
    labels[ends - 1] = TEST
    labels[ends - 2] = VALID
    return labels


def held_out_items(trained: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the mask of items to exclude from training, bool (I,): a ``share`` of the ``trained`` ones, drawn by
    ``seed``.

    This creates cold items for evaluation in catalogues whose items all occur in training.
    """
    candidates = np.flatnonzero(trained)
    chosen = np.random.default_rng([seed, 1]).permutation(candidates)[: round(share * len(candidates))]
    return np.isin(np.arange(len(trained)), chosen)
