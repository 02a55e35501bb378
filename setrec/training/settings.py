"""Settings of training. Nothing here imports torch, so that a configuration is checked at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from setrec.settings import Precision, Settings

Samples = Literal["one_pass", "per_prefix"]


class ObjectiveSettings(Settings):
    """The training loss, SETRec's Eq. (8) and our additions.

    ``alpha`` weighs the reconstruction error. ``slots`` weighs the mean of the slots' own cross-entropies. ``fused``
    weighs the cross-entropy of the fused score, which lets the slots cooperate (the paper: 0). ``negatives``: with
    ``trained``, items that training never shows as a target are left out of the softmax, so that they are not pushed
    down for being new (the paper: ``all``).

    Where more items than ``sampled_above`` are in the softmax, ``samples`` draws stand for them (see
    ``setrec.training.sampled_softmax``); a step's time and memory then no longer grow with the catalogue. Up to there
    the whole softmax is cheap enough: at 100,000 items and 2,048 targets about 0.1 TFLOP a term. What the sample costs
    in ranking quality is measured in ``benchmarks/bench_training_pipeline.py``.
    """

    alpha: float = Field(0.0, ge=0)
    slots: float = Field(0.0, ge=0)
    fused: float = Field(1.0, ge=0)
    negatives: Literal["trained", "all"] = "trained"
    sampled_above: int = Field(4096, ge=0)
    samples: int = Field(1024, ge=1)


class TrainingSettings(Settings):
    """How the recommender is trained.

    ``targets_per_batch``: next-item targets per optimiser step over all workers, padding counted (memory grows with
    it times the catalogue); ``accumulate`` cuts the rows of a step into that many passes, for the same gradient in that
    much less memory. ``patience``: epochs without a better validation NDCG@10 before training stops. ``refit_epochs``:
    epochs over training and validation events together, from the best epoch on at half the learning rate, after which
    the model is served and tested; what is chosen on validation is chosen with the model before them. ``warmup``: share
    of training in which the learning rate rises. ``samples``: ``one_pass`` trains all targets of a window at once,
    ``per_prefix`` one row per target (the same loss, several times slower; kept as the reference). ``recompute``: keep
    only the layers' inputs for the way back, a third more time for memory of about one layer.

    ``shuffle_shards``: shards of histories (a million interactions, 10 MB each) whose users are mixed; a worker holds
    twice that. Data of no more shards is mixed wholly. ``validation_users``: of more users than that so many, drawn by
    the seed, are validated on; at 5,000 NDCG@10 has a standard error of about 0.003. ``checkpoint_steps`` and
    ``checkpoint_minutes``: how often within an epoch a checkpoint is written, beside the one at its end; 0 for never. A
    checkpoint is four times the learned weights in bytes; training waits while they are copied, not while they are
    stored.
    """

    epochs: int = Field(7, ge=1)
    patience: int = Field(6, ge=1)
    refit_epochs: int = Field(2, ge=0)
    targets_per_batch: int = Field(512, ge=1)
    accumulate: int = Field(1, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.05, ge=0, le=1)
    clip: float = Field(1.0, gt=0)
    samples: Samples = "one_pass"
    reconstructed_items: int = Field(1024, ge=1)
    precision: Precision = "auto"
    recompute: bool = False
    shuffle_shards: int = Field(8, ge=1)
    validation_users: int = Field(5000, ge=1)
    checkpoint_steps: int = Field(0, ge=0)
    checkpoint_minutes: float = Field(10.0, ge=0)
    seed: int = Field(42, ge=0)
