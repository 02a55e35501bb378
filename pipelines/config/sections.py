"""The sections of a configuration for running jobs; those of the library and of serving are defined next to the code
that they configure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.common.storage import is_uri
from setrec.settings import LocalPath, Seed, Settings
from setrec.training.settings import EncoderTuningSettings


def _absolute(where: str) -> str:
    """Return an absolute path, because workers may have another working directory."""
    return where if is_uri(where) else str(Path(where).absolute())


class EncoderSettings(Settings):
    """Text vectors: those of a sentence encoder and, in addition, ``lexical`` ones (TF-IDF projected to 256 numbers).

    ``path`` of the sentence encoder is a local directory or a hub id; ``null`` disables sentence vectors. Without
    either the model has no semantic slot and text similarity is not used.

    ``actors``: processes that encode, each of which loads the model (100 MB for a small one, on a GPU if the cluster
    has any); one means this process, without Ray. ``batch_size``: texts at a time; on a CPU more than 64 is not faster.
    ``max_length`` truncates texts, in tokens; time grows with it if texts are long.
    """

    path: str | None = None
    lexical: bool = True
    batch_size: int = Field(64, ge=1)
    max_length: int = Field(256, ge=8)
    actors: int = Field(1, ge=1)


class ItemEncoderSettings(EncoderSettings):
    """Text vectors of items. ``finetune``: the sentence encoder learns from the histories before texts are encoded."""

    finetune: EncoderTuningSettings = EncoderTuningSettings()

    @model_validator(mode="after")
    def _something_to_tune(self) -> ItemEncoderSettings:
        if self.finetune.epochs and self.path is None:
            raise ValueError("finetune needs a sentence encoder: path")
        return self


class StructuralSettings(Settings):
    """The structural slot: each item's position in a graph of items, attribute values and entities.

    ``enabled``: one more slot, hence one more query; an epoch of training costs about a tenth more, and the weight grid
    of the evaluation has a further dimension. With semantic slots its gain on MovieLens-100K is not distinguishable
    from zero (``benchmarks/bench_structural.py``). ``anchors``: size of an item's position, K; 4 K bytes an item, and
    an index that much wider. ``kind``: ``walks`` (minus the log of truncated personalised PageRank) or ``hops``, which
    hardly differ if interactions form a small world. ``restart`` and ``steps`` of the walks: few steps stay in the
    neighbourhood. ``tau``: positions are exp(-tau d), so 0.25 is the fourth root of a probability.

    ``edges``: ``attributes`` join an item to its categorical values; ``interactions`` join items that users chose
    within ``window`` steps of each other in the training part, for each item the ``neighbours`` strongest (by cosine;
    memory and time grow with it, and too many blur positions); ``knowledge`` are the ``triples`` (head_id, tail_id)
    over entities to which ``links`` (item_id, entity_id) ties items. Half a second for MovieLens-100K.

    ``block``: anchors per Ray task that computes distances, 4 bytes times the nodes each; ``null`` computes them in
    this process, which is faster up to a few million nodes.
    """

    enabled: bool = False
    kind: Literal["walks", "hops"] = "walks"
    anchors: int = Field(64, ge=1)
    restart: float = Field(0.15, ge=0, lt=1)
    steps: int = Field(4, ge=1)
    tau: float = Field(0.25, gt=0)
    edges: tuple[Literal["attributes", "interactions", "knowledge"], ...] = ("attributes", "interactions")
    window: int = Field(3, ge=1)
    neighbours: int = Field(10, ge=1)
    triples: LocalPath | None = None
    links: LocalPath | None = None
    block: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _knowledge_has_its_files(self) -> StructuralSettings:
        wanted = "knowledge" in self.edges
        if (self.triples is not None, self.links is not None) != (wanted, wanted):
            raise ValueError("edges of knowledge need the two files triples and links, which no other edges use")
        return self


class ClusterSettings(Settings):
    """Where training runs. ``address``: a running Ray cluster, or ``null`` for this machine.

    ``threads`` per worker; ``null`` divides the machine's cores among the workers. ``sharding``: with ``none`` every
    worker holds the whole model (DDP); with ``fsdp`` each holds a share of weights, gradients and moments, and layers
    are gathered when needed: memory falls with the number of workers, traffic is 1.5 times as much.

    ``storage``: location of checkpoints, a folder or a URI such as ``s3://bucket/checkpoints`` that all workers can
    reach; each run has a folder of its name there, so two runs of the same name must not share it. ``null``: the run's
    own folder. ``checkpoints``: number of checkpoints kept, each up to four times the weights. ``storage_patience``:
    seconds for which an unreachable store is retried, while training continues, before the run fails. ``max_failures``:
    how often lost workers are restarted, each time from the last checkpoint; -1 for no limit.
    """

    address: str | None = None
    workers: int = Field(1, ge=1)
    gpu: bool = False
    threads: int | None = Field(None, ge=1)
    sharding: Literal["none", "fsdp"] = "none"
    storage: Annotated[str, AfterValidator(_absolute)] | None = None
    storage_patience: float = Field(300.0, ge=0)
    checkpoints: int = Field(2, ge=1)
    max_failures: int = Field(3, ge=-1)


class EvaluationSettings(Settings):
    """Cut-offs, bootstrap, opponents and the weight search of the ranking evaluation.

    ``users``: maximum number of test users, sampled by the seed; ``null`` for all. Time grows with it, and the metrics
    of a user take 5 kB.
    ``components`` of the weight search in addition to the model; ``null`` for all that are registered. ``opponents`` in
    the table; ``sasrec`` is trained if the run has none. ``batch_size``: users scored at a time, 4 bytes times the
    catalogue each and about five times that while ranks are counted. ``actors``: processes that rank batches, each of
    which loads the models; metrics are the same. One means this process, without Ray, which is faster up to some ten
    thousand users.
    """

    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((5, 10, 20), min_length=1)
    resamples: int = Field(1000, ge=10)
    seed: Seed = 0
    users: int | None = Field(None, ge=1)
    examples: int = Field(5, ge=0)
    components: tuple[str, ...] | None = None
    opponents: tuple[Literal["popularity", "item_knn", "sasrec"], ...] = ("popularity", "item_knn")
    batch_size: int = Field(256, ge=1)
    actors: int = Field(1, ge=1)


class GateSettings(Settings):
    """When a new model is held back.

    ``metric`` on the test items, history removed, all items; its cut-off must be among ``evaluation.ks``. ``margin``:
    share of the last release's value that may be lost, 0.05 for a twentieth. ``by``: ``mean`` compares the difference
    itself with it, ``interval`` the lower end of its 95% interval, which holds back models that are not shown to be as
    good: with a thousand users that interval is about 0.01 wide to each side, so this happens most nights. ``minimum``:
    below this value nothing is released, not even a first model. The last release is ranked again on today's test
    items, which takes as long as one system of the evaluation.

    ``volume``: before training, users, items and interactions must each be at least this share of the last release's; 0
    disables the check.
    """

    metric: str = "ndcg@10"
    margin: float = Field(0.05, ge=0)
    by: Literal["mean", "interval"] = "mean"
    minimum: float = Field(0.0, ge=0, le=1)
    volume: float = Field(0.5, ge=0, le=1)


class ReleaseSettings(Settings):
    """Location of released bundles. ``folder``: a path, or a URI such as ``s3://bucket/releases``; ``null`` for
    ``releases`` under the root. ``setrec serve --releases`` takes the same folder. ``keep``: number of releases kept,
    including the current one; each takes the disk space of a bundle and of a record of its run.
    """

    folder: Annotated[str, Field(min_length=1), AfterValidator(_absolute)] | None = None
    keep: int = Field(3, ge=1)
