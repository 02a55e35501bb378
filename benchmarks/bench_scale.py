"""How time and memory of the pipelines grow from ten thousand to a million users, and as many items.

For each size a world of ``benchmarks/interactions.py`` (about ten interactions a user) is written, and every step of
:data:`STEPS` runs on it in a process of its own with a Ray cluster of its own: two cores, whatever the machine has.
``seconds`` are those of the step, without the start of Python and Ray. ``peak_gb`` is the most that all processes
had together, Ray's own (about 0.6 GB) included, with shared pages counted once; ``process_gb`` is the most that one
process had to itself (``benchmarks/memory.py`` says how both are measured).

- ``ingest``: both tables to a data directory
- ``tokenise``: the job that encodes item texts, with vectors of 384 numbers hashed from the text **in place of a
  sentence encoder**: everything but the encoder's own work, which grows with the number of texts alone
- ``distances``: hops of all nodes to 64 anchors, as tasks, on a power-law graph with a node an item
- ``train``: the first 5 steps of the default model, read from the shards, with random collaborative vectors and no
  others; counting items and building the model included. Beyond 100,000 trained items the softmax is sampled
- ``evaluate``: a model of that kind ranks the whole catalogue for 256 test users, warm and cold, history kept and
  removed; reading all histories and the catalogue included

Figures go to results/scale.json, ``--plot`` (on by default) draws docs/scale.svg. A further step is a function of a
:class:`Place` in :data:`STEPS` that returns its seconds. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from interactions import World, write

from pipelines.common.cluster import ray_session

SIZES = (10_000, 100_000, 1_000_000)
CORES = 2
TRAINED, EVALUATED = 5, 256
"""Steps of training: an epoch of a million users has some thousands. Users that are evaluated."""
PLOT = Path(__file__).parent.parent / "docs" / "scale.svg"


@dataclass(frozen=True)
class Place:
    """Where a size's files lie: ``world`` the raw tables, ``run`` the folder of the run; ``size`` users and items."""

    root: Path
    size: int

    @property
    def world(self) -> Path:
        """The raw tables."""
        return self.root / "world"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.root / "run"

    def config(self) -> Any:
        """The configuration of the run."""
        from pipelines.config.job import validate

        data = {
            "interactions": str(self.world / "interactions"),
            "items": str(self.world / "items"),
            "columns": {"attributes": ["genre"]},
        }
        return validate({"data": data}, "benchmark")


@contextmanager
def clocked() -> Iterator[list[float]]:
    """A list that holds the block's seconds after it."""
    found: list[float] = []
    began = time.perf_counter()
    yield found
    found.append(time.perf_counter() - began)


def ingest(place: Place) -> float:
    """The raw tables to a data directory."""
    from pipelines.ingest.ingest import ingest as run

    data = place.config().data
    with clocked() as seconds:
        run(data, place.run / "data")
    return seconds[0]


class HashedTexts:
    """Stands in for a sentence encoder: numbers from a hash of the text, which mean nothing."""

    name, identity, width, batch_size = "hashed", "hashed", 384, 64

    def encode(self, texts: list[str]) -> np.ndarray:
        """Float32 (texts, width)."""
        digests = b"".join(hashlib.shake_128(text.encode()).digest(self.width) for text in texts)
        return np.frombuffer(digests, np.int8).reshape(len(texts), self.width).astype(np.float32) / 64


def tokenise(place: Place) -> float:
    """Item texts to vectors, without a sentence encoder."""
    from pipelines.common.run_directory import Run
    from pipelines.features import encode_texts

    encode_texts.text_encoder = lambda _: HashedTexts()  # type: ignore[assignment,return-value]
    config = place.config()
    with clocked() as seconds:
        encode_texts.encode_texts(Run(place.run), config)
    return seconds[0]


def distances(place: Place) -> float:
    """Hops to 64 anchors, as tasks."""
    from graphs import power_law

    from nodetok.anchors import choose
    from nodetok.graph import Graph
    from nodetok.settings import AnchorSettings, DistanceSettings
    from pipelines.features.distances import distances_on_cluster

    graph = Graph.from_arrays(*power_law(place.size, 5 * place.size, 0), place.size)
    anchors = choose(graph, AnchorSettings(count=64, radius=2)).rows
    with ray_session(cpus=CORES), clocked() as seconds:
        # Two blocks, one a core.
        distances_on_cluster(graph, anchors, DistanceSettings(), place.root / "distances.npy", block=32)
    return seconds[0]


class _EnoughError(Exception):
    """Ends an epoch before its end."""


def new_model(place: Place, counts: np.ndarray) -> Any:
    """An untrained model of the world's catalogue, with random collaborative vectors."""
    from setrec.models.item_tokens import ItemFeatures
    from setrec.models.setrec_model import SetRecModel

    vectors = np.random.default_rng(0).standard_normal((place.size, 64), dtype=np.float32)
    return SetRecModel.build(place.config().model, ItemFeatures(counts > 0, vectors, None))


def train(place: Place) -> float:
    """The first :data:`TRAINED` steps of training, from the shards."""
    import torch

    from pipelines.data.directory import history_shards
    from pipelines.training.shard_source import ShardSource
    from setrec.data.source import item_counts
    from setrec.training.trainer import Trainer

    torch.set_num_threads(CORES)
    config, done = place.config(), []

    def count(_: float) -> None:
        done.append(1)
        if len(done) == TRAINED:
            raise _EnoughError

    with clocked() as seconds, suppress(_EnoughError):
        source = ShardSource(history_shards(place.run / "data"), place.size)
        counts = item_counts(source, place.size)
        model = new_model(place, counts)
        Trainer(model, source, lambda _: 0.0, config.training, config.loss, counts=counts).epoch(count)
    return seconds[0]


def evaluate(place: Place) -> float:
    """Full ranking for :data:`EVALUATED` test users."""
    import torch

    from pipelines.data.directory import load
    from setrec.data.catalog import TEST
    from setrec.evaluation import ranking
    from setrec.scoring.model_scores import model_scorer

    torch.set_num_threads(CORES)
    with clocked() as seconds:
        catalog, histories = load(place.run / "data")
        counts = histories.train_counts(len(catalog))
        model = new_model(place, counts)
        cases = ranking.Cases.of(histories, TEST).sample(EVALUATED, 0)
        score = model_scorer(model)
        ranking.evaluate(score, cases, ranking.warm_cold_groups(counts > 0), batch=64)
    return seconds[0]


STEPS: dict[str, Callable[[Place], float]] = {
    "ingest": ingest,
    "tokenise": tokenise,
    "distances": distances,
    "train": train,
    "evaluate": evaluate,
}
"""What is measured, in this order; a later step finds what an earlier one left in the run's folder."""


def apart(step: str, place: Place) -> dict[str, float]:
    """A step in a process of its own, watched."""
    from memory import Sampler

    command = [sys.executable, __file__, "--step", step, "--root", str(place.root), "--sizes", str(place.size)]
    # One numba thread a task: Ray's tasks are what runs side by side.
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child,
        Sampler(child.pid) as sampler,
    ):
        said, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"{step} at {place.size} failed")
    seconds = json.loads(said.strip().splitlines()[-1])["seconds"]
    return {"seconds": seconds, "peak_gb": sampler.peak.total, "process_gb": sampler.peak.largest}


def measured(sizes: list[int], root: Path) -> list[dict[str, Any]]:
    """All steps at all sizes."""
    from pipelines.features import encode_texts

    rows = []
    for size in sizes:
        place = Place(root / str(size), size)
        write(World(size, size), place.world)
        for left in (place.run, place.root / encode_texts.CACHE):  # a text encoded before would cost nothing
            shutil.rmtree(left, ignore_errors=True)
        # Others at work on the machine make every figure of seconds larger.
        row: dict[str, Any] = {"users": size, "items": size, "load_before": os.getloadavg()[0], "steps": {}}
        for step in STEPS:
            row["steps"][step] = found = apart(step, place)
            print(
                f"{size:>9,} {step:<10}" + "".join(f"  {name} {value:.2f}" for name, value in found.items()), flush=True
            )
        rows.append(row)
    return rows


def drawn(rows: list[dict[str, Any]]) -> str:
    """Seconds and memory by size, as an SVG file."""
    from plots import stacked

    titles = {"seconds": "seconds", "peak_gb": "peak GB, all processes", "process_gb": "peak GB of one process"}
    charts = {
        title: {name: [row["steps"][name][key] for row in rows] for name in rows[0]["steps"]}
        for key, title in titles.items()
    }
    return stacked([row["users"] for row in rows], charts, "number of users and of items")


def keep(rows: list[dict[str, Any]], plot: bool) -> None:
    """Write results/scale.json and the plot."""
    from harness import RESULTS, write_results

    from setrec.atomic import atomic_file

    write_results("scale", {})
    record = json.loads((RESULTS / "scale.json").read_text())
    with atomic_file(RESULTS / "scale.json") as path:
        path.write_text(json.dumps({**record, "cores": CORES, "sizes": rows}, indent=2))
    if plot:
        with atomic_file(PLOT) as path:
            path.write_text(drawn(rows))


def main() -> None:
    """All sizes, or one step of one size as a child."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="nothing is kept for others")
    options.add_argument("--root", type=Path, help="folder for the data; default: a temporary one")
    options.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True)
    options.add_argument("--step", choices=list(STEPS), help="run one step in this process and print its seconds")
    asked = options.parse_args()
    if asked.step:
        print(json.dumps({"seconds": STEPS[asked.step](Place(asked.root, asked.sizes[0]))}))
        return
    with tempfile.TemporaryDirectory(prefix="scale") as temporary:
        rows = measured(asked.sizes, asked.root or Path(temporary))
    if asked.sizes == list(SIZES):
        keep(rows, asked.plot)


if __name__ == "__main__":
    main()
