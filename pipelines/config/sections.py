"""The sections of a configuration that say how jobs run; those of the library and of serving lie beside what they
configure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.common.storage import is_uri
from setrec.settings import LocalPath, Settings


def _absolute(where: str) -> str:
    """Workers may stand elsewhere."""
    return where if is_uri(where) else str(Path(where).absolute())


class EncoderSettings(Settings):
    """Text vectors: those of a sentence encoder, and ``lexical`` ones (TF-IDF projected to 256 numbers) beside them.

    ``path`` of the sentence encoder is a local directory or a hub id; ``null`` leaves sentence vectors out. Without
    either the model has no semantic slot and text similarity takes no part.

    ``actors``: processes that encode, each with the model once (100 MB for a small one, on a GPU where the cluster has
    any); one is this process, without Ray. ``batch_size``: texts at a time; on a CPU more than 64 gain nothing.
    ``max_length`` cuts texts, in tokens; time grows with it where texts are long.
    """

    path: str | None = None
    lexical: bool = True
    batch_size: int = Field(64, ge=1)
    max_length: int = Field(256, ge=8)
    actors: int = Field(1, ge=1)


class StructuralSettings(Settings):
    """The structural slot: each item's position in a graph of items, attribute values and entities.

    ``enabled``: one more slot, hence one more query; an epoch of training costs about a tenth more, and the weight grid
    of the evaluation has a further dimension. Beside semantic slots its gain on MovieLens-100K cannot be told from none
    (``benchmarks/bench_structural.py``). ``anchors``: numbers of an item's position, K; 4 K bytes an item, and an index
    that much wider. ``kind``: ``walks`` (minus the log of truncated personalised PageRank)
    or ``hops``, which hardly differ where interactions make a small world. ``restart`` and ``steps`` of the walks: few
    steps keep to the neighbourhood. ``tau``: positions are exp(-tau d), so 0.25 is the fourth root of a probability.

    ``edges``: ``attributes`` join an item to its categorical values; ``interactions`` join items that users chose
    within ``window`` steps of each other in the training part, of each item's the ``neighbours`` strongest (by cosine;
    memory and time grow with it, and many blur positions); ``knowledge`` are the ``triples`` (head_id, tail_id) over
    entities to which ``links`` (item_id, entity_id) ties items. Half a second for MovieLens-100K.

    ``block``: anchors that one Ray task measures distances to, 4 bytes times the nodes each; ``null`` measures in this
    process, the quicker choice up to some million nodes.
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
            raise ValueError("edges of knowledge need the two files triples and links, and nothing else does")
        return self


class ClusterSettings(Settings):
    """Where training runs. ``address``: a running Ray cluster, or ``null`` for this machine alone.

    ``threads`` per worker; ``null`` shares the machine's cores among the workers. ``sharding``: with ``none`` every
    worker holds the whole model (DDP); with ``fsdp`` each holds its share of weights, gradients and moments, and layers
    are gathered as they are needed: memory falls with the number of workers, traffic is half as much again.

    ``storage``: where checkpoints lie, a folder or a URI such as ``s3://bucket/checkpoints`` that all workers reach;
    each run has a folder of its name there, so two runs of one name must not share it. ``null``: the run's own folder.
    ``checkpoints``: how many are kept, each up to four times the weights. ``storage_patience``: seconds for which a
    store that is out of reach is tried again, while training goes on, before the run fails. ``max_failures``: how often
    lost workers are started again, each time from the last checkpoint; -1 for without end.
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

    ``weight_step`` 0.1 tries 11 weightings of two kinds of slots and 66 of three, all from one pass of the model.
    ``components`` that take part in the weight search beside the model; ``null`` for all that are registered.
    ``opponents`` in the table; ``sasrec`` is trained where the run has none. ``batch_size``: users scored at a time, 4
    bytes times the catalogue each and about five times that while ranks are counted. ``actors``: processes that rank
    batches, each with the models once; metrics are the same. One is this process, without Ray, and the quicker choice
    up to some ten thousand users.
    """

    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((5, 10, 20), min_length=1)
    resamples: int = Field(1000, ge=10)
    weight_step: float = Field(0.1, gt=0, le=1)
    seed: int = Field(0, ge=0)
    examples: int = Field(5, ge=0)
    components: tuple[str, ...] | None = None
    opponents: tuple[Literal["popularity", "item_knn", "sasrec"], ...] = ("popularity", "item_knn")
    batch_size: int = Field(256, ge=1)
    actors: int = Field(1, ge=1)


class GateSettings(Settings):
    """When a new model is held back.

    ``metric`` on the test items, history removed, all items; its cut-off must be among ``evaluation.ks``. ``margin``:
    how much of the last release's value may be lost, 0.05 for a twentieth. ``by``: ``mean`` compares the difference
    itself with it, ``interval`` the lower end of its 95% interval, which holds back what cannot be shown to be as good:
    with a thousand users that interval is some 0.01 wide to each side, so most nights. ``minimum``: below this value
    nothing is released, not even a first model. The last release is ranked again on today's test items, which takes as
    long as one system of the evaluation.

    ``volume``: before training, users, items and interactions must each be at least this share of the last release's;
    0 asks for nothing.
    """

    metric: str = "ndcg@10"
    margin: float = Field(0.05, ge=0)
    by: Literal["mean", "interval"] = "mean"
    minimum: float = Field(0.0, ge=0, le=1)
    volume: float = Field(0.5, ge=0, le=1)


class ReleaseSettings(Settings):
    """Where released bundles go. ``folder``: a path, or a URI such as ``s3://bucket/releases``; ``null`` for
    ``releases`` under the root. It is the one that ``setrec serve --releases`` is given. ``keep``: how many stay, the
    current one among them; each takes the disk of a bundle and of a record of the run behind it.
    """

    folder: Annotated[str, Field(min_length=1), AfterValidator(_absolute)] | None = None
    keep: int = Field(3, ge=1)
