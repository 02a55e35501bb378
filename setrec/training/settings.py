"""Settings of training. Does not import torch, so that a configuration is validated quickly."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from setrec.settings import Precision, Seed, Settings

Samples = Literal["one_pass", "per_prefix"]
KEY_WORDS_WEIGHT = 0.3
"""Weight of the key words' cross-entropy where nothing else is set."""


class ObjectiveSettings(Settings):
    """The training loss: SETRec's Eq. (8) and additions to it.

    ``alpha`` weighs the reconstruction error. ``slots`` weighs the mean of the slots' own cross-entropies. ``fused``
    weighs the cross-entropy of the fused score, which lets the slots cooperate (the paper: 0). ``words`` weighs the
    cross-entropy of an item's key words predicted from its semantic code (after Text2Token, arXiv 2510.10224; the
    paper: 0); ``null``: :data:`KEY_WORDS_WEIGHT` if there are semantic slots and key words (``encoder.lexical`` and
    words that several texts share), else 0. ``negatives``: ``trained`` excludes items that are never a training target
    from the softmax, so that new items are not penalised (the paper: ``all``).

    With more than ``sampled_above`` items in the softmax, ``samples`` draws replace them (see
    ``setrec.training.sampled_softmax``); a step's time and memory then do not grow with the catalogue. Below that, the
    full softmax is cheap enough. Fewer draws cost ranking quality, more only time (Toys, 11,924 items: with 4,096 every
    epoch is as good as with the full softmax, in half of its time).
    ``benchmarks/bench_training_pipeline.py`` measures the loss of ranking quality from sampling.
    """

    alpha: float = Field(0.0, ge=0)
    slots: float = Field(0.0, ge=0)
    fused: float = Field(1.0, ge=0)
    words: float | None = Field(None, ge=0)
    negatives: Literal["trained", "all"] = "trained"
    sampled_above: int = Field(4096, ge=0)
    samples: int = Field(4096, ge=1)

    @property
    def words_weight(self) -> float:
        """Return the weight of the key words' cross-entropy, if there is one."""
        return KEY_WORDS_WEIGHT if self.words is None else self.words


class OffsetSettings(Settings):
    """Training against the rest: the components of the score that are not the model stand in the softmax as an offset,
    so that gradients go where counting fails (see ``pipelines.training.cross_fitting``).

    Components are fitted on all but one of ``folds`` parts of the users and score the positions of that part. ``top``
    items of each position are stored, 6 bytes each, until training ends, and again for the refit; scoring a position
    costs as much as ranking a user without the model. With a sampled softmax only the listed items of the sample count.
    """

    enabled: bool = False
    folds: int = Field(4, ge=2)
    top: int = Field(200, ge=1)


class TrainingSettings(Settings):
    """Settings of the recommender's training.

    ``targets_per_batch``: next-item targets per optimiser step over all workers, padding counted (memory grows with
    it times the catalogue); ``accumulate`` splits the rows of a step into that many passes, with the same gradient and
    that much less memory. ``patience``: epochs without a better validation NDCG@10 before training stops.
    ``refit_epochs``: the model that is served and tested is trained on training and validation events together, while
    choices on validation use the model before. ``null`` trains it anew, each leg for as many epochs as were best on
    validation, on the same schedule, which takes as long again; a number continues the model of the best epoch for so
    many, at half the learning rate; 0 keeps that model.
    ``leg_weight_decay``: of the collaborative leg, whose vectors of items overfit within a few epochs at less.
    ``warmup``: share of training in which the learning rate rises. ``backbone_share``: the learning rate of the
    backbone's weights as a share of ``learning_rate`` (``None``: 1 from scratch, a fiftieth for a pretrained backbone,
    a fifth for its adapters). ``samples``: ``one_pass`` trains all targets of a window at once, ``per_prefix`` one row
    per target (the same loss, several times slower; the reference).
    ``recompute``: store only the layers' inputs for the backward pass, a third more time for memory of about one layer.

    ``shuffle_shards``: shards of histories (a million interactions, 10 MB each) whose users are mixed; a worker holds
    twice that. Data with at most that many shards is mixed completely. ``validation_users``: maximum number of
    validation users, sampled by the seed; at 5,000 NDCG@10 has a standard error of about 0.003. ``checkpoint_steps``
    and ``checkpoint_minutes``: intervals of checkpoints within an epoch, in addition to the one at its end; 0 for
    never. A checkpoint is four times the learned weights in bytes; training waits while they are copied, not while they
    are written. ``offset``: see :class:`OffsetSettings`.
    """

    epochs: int = Field(12, ge=1)
    patience: int = Field(6, ge=1)
    refit_epochs: int | None = Field(None, ge=0)
    targets_per_batch: int = Field(512, ge=1)
    accumulate: int = Field(1, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    backbone_share: float | None = Field(None, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    leg_weight_decay: float = Field(0.5, ge=0)
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
    offset: OffsetSettings = OffsetSettings()
    seed: Seed = 42

    @property
    def refit_length(self) -> int:
        """Return the maximum number of epochs of the refit."""
        return self.epochs if self.refit_epochs is None else self.refit_epochs


class EncoderTuningSettings(Settings):
    """Fine-tuning of a sentence encoder: the vectors of a history and of its next item are brought near.

    ``epochs``: passes over the training histories; 0 leaves the encoder as it is. ``patience``: epochs without a better
    validation recall@10. ``layers``: upper layers that learn; those below are computed once for each text and kept on
    disk during training (2 bytes times width and tokens). ``latest`` items of a history are read. ``users``: histories
    per step, with up to ``positions`` targets each; memory grows with the tokens of a step's texts, 20 kB each for a
    width of 384. ``hard_negatives`` per target: items with similar texts that the user did not choose, in addition to
    the targets of the step; to find them all pairs of trained items are compared once. ``temperature``: where the
    learned one starts. ``drift_penalty``: weight of 1 minus the cosine to the original vectors, which keeps the vectors
    of new items comparable.
    """

    epochs: int = Field(0, ge=0)
    patience: int = Field(2, ge=1)
    layers: int = Field(1, ge=1)
    latest: int = Field(10, ge=1)
    users: int = Field(128, ge=1)
    positions: int = Field(8, ge=1)
    hard_negatives: float = Field(0.25, ge=0, le=1)
    temperature: float = Field(0.05, gt=0, le=1)
    drift_penalty: float = Field(0.1, ge=0)
    learning_rate: float = Field(3e-4, gt=0)
    seed: Seed = 42
