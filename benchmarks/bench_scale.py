"""How time and memory of the pipelines grow from ten thousand to ten million users, a hundred million interactions.

For each size a world of ``benchmarks/interactions.py`` (about ten interactions a user, as many items as users but at
most a million) is written, and every step of :data:`STEPS` runs on it in a process of its own with a Ray cluster of its
own: two cores, whatever the machine has. ``seconds`` and ``cpu_seconds`` are those of the step, without the start of
Python and, except in ingest, of Ray; CPU seconds count all processes below. ``peak_gb`` is the most that all processes
had together, Ray's own (about 0.6 GB) included, with shared pages counted once; ``process_gb`` is the most that one
process had to itself, resident pages of its temporary files included; ``held_gb`` is the most of one without pages of
files, which the system cannot drop (``benchmarks/memory.py`` says how they are measured).

- ``ingest``: both tables to a data directory
- ``tokenise``: the job that encodes item texts, with vectors of 384 numbers hashed from the text **in place of a
  sentence encoder**: everything but the encoder's own work, which grows with the number of texts alone
- ``distances``: hops of all nodes to 64 anchors, as tasks, on a power-law graph with a node an item
- ``train``: the first 5 steps of the default model, read from the shards, with random collaborative vectors and no
  others; counting items and building the model included. Beyond 100,000 trained items the softmax is sampled
- ``transitions``: the transition graph of the longest reach, from all histories known at test
- ``evaluate``: a model of that kind ranks the whole catalogue for 256 test users, warm and cold, history kept and
  removed; reading all histories and the catalogue included
- ``export``: a bundle of that model and that graph with exact search (``benchmarks/bench_retrieval.py`` measures an
  index), examined
- ``recommend``: the batch job for 1,000 users of the bundle, two actors; opening it included

``exponents`` are slopes of a figure over the number of users, or of items where only they count, both as logarithms:
``slope`` by least squares over all sizes, where constant costs count at the small ones, and ``last`` between the two
largest. Figures go to results/scale.json unless ``--sizes`` are given, ``--plot`` (on by default) draws docs/scale.svg.
With ``--root`` a run that was interrupted continues after its last step, if the code is the same; ``--largest`` leaves
out larger sizes. A further step is a function of a :class:`Place` in :data:`STEPS`, its work in :func:`clocked`.
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
from memory import CpuTime, Sampler

from pipelines.common.cluster import ray_session
from pipelines.common.fingerprints import of_code, of_file, of_value
from setrec.atomic import atomic_file

SIZES, MOST_ITEMS = (10_000, 100_000, 1_000_000, 10_000_000), 1_000_000
CORES = 2
TRAINED, EVALUATED, ASKED = 5, 256, 1000
"""Steps of training: an epoch of a million users has some thousands. Users that are evaluated, and answered."""
GRAPH = "transitions_wide"
FIGURES = {
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds, all processes",
    "peak_gb": "peak GB, all processes",
    "process_gb": "peak GB of one process",
    "held_gb": "peak GB of one process, without pages of files",
}
OF_ITEMS = ("tokenise", "distances")
"""Steps that do not depend on the number of users."""
PLOT = Path(__file__).parent.parent / "docs" / "scale.svg"


@dataclass(frozen=True)
class Place:
    """Where a size's files lie: ``world`` the raw tables, ``run`` the folder of the run; ``size`` users."""

    root: Path
    size: int

    @property
    def items(self) -> int:
        """Items of the catalogue."""
        return min(self.size, MOST_ITEMS)

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
def clocked() -> Iterator[dict[str, float]]:
    """A dictionary that holds the block's seconds and CPU seconds after it."""
    found: dict[str, float] = {}
    began = time.perf_counter()
    with CpuTime() as cpu:
        yield found
    found |= {"seconds": time.perf_counter() - began, "cpu_seconds": cpu.seconds}


def ingest(place: Place) -> dict[str, float]:
    """The raw tables to a data directory."""
    from pipelines.ingest.ingest import ingest as run

    data = place.config().data
    with clocked() as found:
        run(data, place.run / "data")
    return found


class HashedTexts:
    """Stands in for a sentence encoder: numbers from a hash of the text, which mean nothing."""

    name, identity, width, batch_size = "hashed", "hashed", 384, 64

    def encode(self, texts: list[str]) -> np.ndarray:
        """Float32 (texts, width)."""
        digests = b"".join(hashlib.shake_128(text.encode()).digest(self.width) for text in texts)
        return np.frombuffer(digests, np.int8).reshape(len(texts), self.width).astype(np.float32) / 64


def tokenise(place: Place) -> dict[str, float]:
    """Item texts to vectors, without a sentence encoder."""
    from pipelines.common.run_directory import Run
    from pipelines.features import encode_texts

    shutil.rmtree(place.root / encode_texts.CACHE, ignore_errors=True)  # a text encoded before would cost nothing
    encode_texts.text_encoder = lambda *_: HashedTexts()  # type: ignore[assignment,return-value]
    config = place.config()
    with clocked() as found:
        encode_texts.encode_texts(Run(place.run), config)
    return found


def distances(place: Place) -> dict[str, float]:
    """Hops to 64 anchors, as tasks."""
    from graphs import power_law

    from nodetok.anchors import choose
    from nodetok.graph import Graph
    from nodetok.settings import AnchorSettings, DistanceSettings
    from pipelines.features.distances import distances_on_cluster

    graph = Graph.from_arrays(*power_law(place.items, 5 * place.items, 0), place.items)
    anchors = choose(graph, AnchorSettings(count=64, radius=2)).rows
    with ray_session(cpus=CORES), clocked() as found:
        # Two blocks, one a core.
        distances_on_cluster(graph, anchors, DistanceSettings(), place.root / "distances.npy", block=32)
    return found


class _EnoughError(Exception):
    """Ends an epoch before its end."""


def new_model(place: Place, counts: np.ndarray) -> Any:
    """An untrained model of the world's catalogue, with random collaborative vectors."""
    from setrec.models.item_tokens import ItemFeatures
    from setrec.models.setrec_model import SetRecModel

    vectors = np.random.default_rng(0).standard_normal((place.items, 64), dtype=np.float32)
    return SetRecModel.build(place.config().model, ItemFeatures(counts > 0, vectors, None))


def train(place: Place) -> dict[str, float]:
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

    with clocked() as found, suppress(_EnoughError):
        source = ShardSource(history_shards(place.run / "data"), place.items)
        counts = item_counts(source, place.items)
        model = new_model(place, counts)
        Trainer(model, source, lambda _: [0.0], config.training, config.loss, counts=counts).epoch(count)
    return found


def transitions(place: Place) -> dict[str, float]:
    """The transition graph of all histories known at test."""
    import torch

    from pipelines.data.directory import load
    from pipelines.evaluation.scorer import known_at_test
    from setrec.scoring.hybrid import build_components
    from setrec.scoring.registry import Sources

    torch.set_num_threads(CORES)
    with clocked() as found:
        _, histories = load(place.run / "data")
        graph = build_components((GRAPH,), Sources(known_at_test(histories), place.items))[GRAPH]
    graph.save(place.root / f"{GRAPH}.safetensors")
    return found


def evaluate(place: Place) -> dict[str, float]:
    """Full ranking for :data:`EVALUATED` test users."""
    import torch

    from pipelines.data.directory import load
    from setrec.data.catalog import TEST
    from setrec.evaluation import ranking
    from setrec.scoring.model_scores import model_scorer

    torch.set_num_threads(CORES)
    with clocked() as found:
        catalog, histories = load(place.run / "data")
        counts = histories.train_counts(len(catalog))
        model = new_model(place, counts)
        cases = ranking.Cases.of(histories, TEST, EVALUATED)
        ranking.evaluate(model_scorer(model), cases, ranking.warm_cold_groups(counts > 0), batch=64)
    return found


def export(place: Place) -> dict[str, float]:
    """A bundle with the transition graph and exact search."""
    import torch

    from pipelines.data.directory import load
    from serving.bundle.writer import write_bundle
    from serving.engine.acceptance import examine
    from serving.retrieval.retriever import RetrieverSettings
    from setrec.scoring.hybrid import HybridWeights, load_components

    torch.set_num_threads(CORES)
    with clocked() as found:
        catalog, histories = load(place.run / "data")
        model = new_model(place, histories.train_counts(len(catalog))).eval()
        model.save_pretrained(place.root / "model")
        write_bundle(
            place.root / "bundle",
            model_dir=place.root / "model",
            catalog=catalog,
            histories=histories,
            item_codes=model.item_codes().numpy(),
            scorer=HybridWeights(slots=dict.fromkeys(model.kinds, 1.0), components={GRAPH: 1.0}),
            components=load_components((GRAPH,), place.root),
            retriever=RetrieverSettings(kind="exact"),
            examine=examine,
        )
    return found


def recommend(place: Place) -> dict[str, float]:
    """The best items of :data:`ASKED` users of the bundle, by the batch job."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.data.directory import history_shards
    from pipelines.jobs.batch_recommend import BatchRequest, recommend_batch
    from setrec.data.catalog import Histories

    users, first = place.root / "asked.parquet", Histories.load(history_shards(place.run / "data")[0])
    pq.write_table(pa.table({"user_id": list(first.user_ids[:ASKED])}), users)
    asked = BatchRequest(place.root / "bundle", str(users), str(place.root / "answers"), actors=CORES)
    with ray_session(cpus=CORES + 1), clocked() as found:
        recommend_batch(asked)
    return found


STEPS: dict[str, Callable[[Place], dict[str, float]]] = {
    step.__name__: step for step in (ingest, tokenise, distances, train, transitions, evaluate, export, recommend)
}
"""What is measured, in this order; a later step finds what an earlier one left in the run's folder."""


def apart(step: str, place: Place) -> dict[str, float]:
    """A step in a process of its own, watched."""
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
    peak = sampler.peak
    figures = json.loads(said.strip().splitlines()[-1])
    return {**figures, "peak_gb": peak.total, "process_gb": peak.largest, "held_gb": peak.held}


def measured(sizes: list[int], root: Path) -> list[dict[str, Any]]:
    """All steps at all sizes; each is stored below ``root`` when it ends, and not repeated there by the same code."""
    rows = []
    for size in sizes:
        place = Place(root / str(size), size)
        write(World(size, place.items), place.world)
        stored, code = place.root / "steps.json", of_value([of_code(), of_file(__file__)])
        known = json.loads(stored.read_text()) if stored.exists() else {}
        if known.get("code") != code:
            shutil.rmtree(place.run, ignore_errors=True)
            # Others at work on the machine make every figure of seconds larger.
            row = {"users": size, "items": place.items, "load_before": os.getloadavg()[0], "steps": {}}
            known = {"code": code, "row": row}
        row = known["row"]
        for step in STEPS:
            if step not in row["steps"]:
                row["steps"][step] = apart(step, place)
                with atomic_file(stored) as path:
                    path.write_text(json.dumps(known))
            shown = "".join(f"  {name} {value:.2f}" for name, value in row["steps"][step].items())
            print(f"{size:>10,} {step:<11}{shown}", flush=True)
        rows.append(row)
    return rows


def exponents(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Exponents of growth by step and figure; see the module. Empty for a single size."""
    found: dict[str, dict[str, Any]] = {}
    for step in STEPS:
        over = "items" if step in OF_ITEMS else "users"
        each = {row[over]: row["steps"][step] for row in reversed(rows)}  # of equal sizes the first
        sizes = np.log(sorted(each))
        if len(sizes) < 2:
            continue
        found[step] = {"over": over}
        for name in FIGURES:
            values = np.log([max(each[size][name], 1e-3) for size in sorted(each)])
            slope, last = np.polyfit(sizes, values, 1)[0], (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
            found[step][name] = {"slope": round(float(slope), 3), "last": round(float(last), 3)}
    return found


def drawn(rows: list[dict[str, Any]]) -> str:
    """Time and memory by size, as an SVG file."""
    from plots import stacked

    charts = {
        title: {name: [row["steps"][name][key] for row in rows] for name in STEPS} for key, title in FIGURES.items()
    }
    return stacked([row["users"] for row in rows], charts, "number of users; of items up to a million")


def keep(rows: list[dict[str, Any]], plot: bool) -> None:
    """Write results/scale.json and the plot."""
    from harness import RESULTS, write_results

    write_results("scale", {})
    record = json.loads((RESULTS / "scale.json").read_text())
    with atomic_file(RESULTS / "scale.json") as path:
        path.write_text(json.dumps({**record, "cores": CORES, "sizes": rows, "exponents": exponents(rows)}, indent=2))
    if plot:
        with atomic_file(PLOT) as path:
            path.write_text(drawn(rows))


def main() -> None:
    """All sizes, or one step of one size as a child."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", type=int, nargs="+", help="instead of those of the figures; nothing is kept")
    options.add_argument("--largest", type=int, default=SIZES[-1], help="leave out sizes with more users")
    options.add_argument("--root", type=Path, help="folder for the data and finished steps; default: a temporary one")
    options.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True)
    options.add_argument("--step", choices=list(STEPS), help="run one step in this process and print its seconds")
    asked = options.parse_args()
    if asked.step:
        print(json.dumps(STEPS[asked.step](Place(asked.root, asked.sizes[0]))))
        return
    sizes = asked.sizes or [size for size in SIZES if size <= asked.largest]
    with tempfile.TemporaryDirectory(prefix="scale") as temporary:
        rows = measured(sizes, asked.root or Path(temporary))
    for step, grown in exponents(rows).items():
        shown = "".join(f"  {name} {grown[name]['slope']:.2f} ({grown[name]['last']:.2f})" for name in FIGURES)
        print(f"exponent over {grown['over']}, {step:<11}{shown}")
    if not asked.sizes:
        keep(rows, asked.plot)


if __name__ == "__main__":
    main()
