"""What is served against what is evaluated: equal answers, recall and time at a million items, requests a second.

*Agreement*: for run directories made by ``setrec prepare``, ``train``, ``evaluate`` and ``export``, the engine's ten
items for test users against the hybrid scorer over all items. *A million items*: the engine over an index against the
dense route, with synthetic codes and components. *Endpoint*: requests a second at 12 thousand items beside those of an
earlier checkout (``--before``), both on bare uvicorn in one run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from bench_serving import CROWD, free_port, keep, measured
from codes import COLLABORATIVE, SEMANTIC, world
from serving_bundle import USERS, make_bundle

from pipelines.common.run_directory import Run
from pipelines.data import directory
from serving.bundle.reader import Bundle
from serving.bundle.writer import write_bundle
from serving.engine.acceptance import examine
from serving.engine.engine import Answer, Engine, Request
from serving.engine.live_audit import Answered
from serving.retrieval import recall_audit
from setrec.data.catalog import TRAIN, VALID, Catalog, Histories
from setrec.ragged import Ragged
from setrec.scoring.hybrid import HybridScorer, HybridWeights, NewItemWeights
from setrec.scoring.item_graph import GraphComponent, ItemGraph, Reading
from setrec.scoring.model_scores import ModelScores

K, ASKED, BATCH, THIN = 10, 1000, 16, 12_000
MILLION, ARCS, QUERIES = 1_000_000, 64, 300
HEADLINES = ("agreement_beauty", "agreement_ml100k", "recall_at_10_1m", "rps_over_before")
_BEFORE = """
import sys
from pathlib import Path
import serving_bundle
serving_bundle.ITEMS = int(sys.argv[2])
model_settings = serving_bundle.ModelSettings
serving_bundle.ModelSettings = lambda **more: model_settings(
    **more, hidden=(512, 256, 256), carry=(0.0, 0.8, 1.0), returns=True, ask="item"
)
serving_bundle.make_bundle(Path(sys.argv[1]))
"""


def agreement(run: Run) -> float | None:
    """The share of equal places among ten, of test users with their items kept and removed; places within rounding of
    a tie count as equal. ``None`` where the run has no bundle."""
    if not (run.bundle / "manifest.json").exists():
        return None
    bundle = Bundle.open(run.bundle)
    engine = Engine(bundle, threads=1)
    catalog, histories = directory.load(run.data)
    model = bundle.model
    scorer = HybridScorer(
        ModelScores(model, bundle.manifest.scorer.slots),  # type: ignore[arg-type]
        bundle.components, bundle.manifest.scorer, bundle.new,
    )  # fmt: skip
    known = histories.upto(VALID)
    users = np.flatnonzero(known.lengths)
    users = users[np.linspace(0, len(users) - 1, min(ASKED, len(users))).astype(int)]
    shares = []
    for start in range(0, len(users), BATCH):
        history = known.take(users[start : start + BATCH])
        table = scorer(history)
        for kept in (True, False):
            scores = table.copy()
            if not kept:
                scores[history.row_of_value, history.values] = -np.inf
            requests = [
                Request(history=tuple(catalog.item_ids[row] for row in rows), exclude_history=not kept, k=K)
                for rows in history
            ]
            for row, answer in zip(scores, engine.recommend(requests), strict=True):
                assert isinstance(answer, Answer)
                found = catalog.rows([item.item_id for item in answer.items])
                best = np.lexsort((np.arange(len(row)), -row))[: len(found)]
                near = np.abs(row[found] - row[best]) <= 1e-5 * max(1.0, float(np.abs(row[best]).max()))
                shares.append(float(np.mean((found == best) | near)))
    return float(np.mean(shares))


class MeanUsers:
    """A user code is the mean of a history's collaborative columns, and of its semantic ones, each at a weight."""

    kinds = ("collaborative", "semantic")
    code_columns = {"collaborative": (0, COLLABORATIVE), "semantic": (COLLABORATIVE, COLLABORATIVE + SEMANTIC)}  # noqa: RUF012
    max_items = 50

    def user_codes(self, histories: Ragged, weights: Mapping[str, float], codes: torch.Tensor) -> torch.Tensor:
        """See :class:`serving.bundle.reader.UserEncoder`."""
        rows = codes - codes.mean(dim=0)
        means = torch.stack([rows[torch.from_numpy(one.astype(np.int64))].mean(dim=0) for one in histories])
        scale = torch.cat([torch.full((b - a,), weights[kind]) for kind, (a, b) in self.code_columns.items()])
        return means * scale

    def repeat_bias(self, weights: Mapping[str, float]) -> float:
        """See :class:`serving.bundle.reader.UserEncoder`."""
        return -1.0

    def text_codes(self, vectors: torch.Tensor) -> torch.Tensor:
        """See :class:`serving.bundle.reader.UserEncoder`."""
        raise NotImplementedError


def synthetic_arcs(topic: np.ndarray, seed: int, reading: Reading) -> GraphComponent:
    """64 arcs of every item, most of them to items of its topic."""
    rng, items = np.random.default_rng(seed), len(topic)
    order = np.argsort(topic, kind="stable").astype(np.int32)
    place = np.empty(items, np.int64)
    place[order] = np.arange(items)
    near = np.clip(place[:, None] + rng.integers(-200, 200, (items, ARCS)), 0, items - 1)
    targets = order[near]
    targets[:, ARCS - 16 :] = rng.integers(0, items, (items, 16))
    targets.sort(axis=1)
    shares = rng.exponential(0.02, (items, ARCS)).astype(np.float32)
    return GraphComponent(ItemGraph(Ragged(targets.ravel(), ARCS * np.arange(items + 1)), shares.ravel()), reading)


class _Compared:
    """Every answer compared with the dense route, outside the time of the answer."""

    def __init__(self) -> None:
        self.waiting: list[Answered] = []

    def draws(self, bundle: Bundle) -> bool:
        """See :class:`serving.engine.live_audit.Audits`."""
        return True

    def offer(self, answered: Answered) -> None:
        """See :class:`serving.engine.live_audit.Audits`."""
        self.waiting.append(answered)


def million(items: int, folder: Path) -> dict[str, float]:
    """Recall@10 against the dense route, and milliseconds a query of the engine and of its index alone."""
    drawn = world(items, 10)
    rng = np.random.default_rng(0)
    of_topic = np.argsort(drawn.topic, kind="stable")
    starts = rng.integers(0, items - 400, 2000)
    rows = [of_topic[start + rng.integers(0, 400, rng.integers(5, 50))] for start in starts]
    histories = Histories([str(user) for user in range(len(rows))], Ragged.of(rows), np.empty(0, np.int8))
    histories = Histories(histories.user_ids, histories.items, np.full(len(histories.items.values), TRAIN, np.int8))
    ids = [str(item) for item in range(items)]
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    write_bundle(
        folder / "bundle",
        examine=examine,
        model_dir=folder / "model",
        catalog=Catalog(ids, ids, [""] * items, {}),
        histories=histories,
        item_codes=drawn.codes,
        scorer=HybridWeights(
            slots={"collaborative": 5.0, "semantic": 0.05},
            components={"transitions_near": 2.0, "text_similarity": 2.0},
            new_items=NewItemWeights(model=0.8, level=0.2),
        ),
        components={
            "transitions_near": synthetic_arcs(drawn.topic, 1, Reading(last=50, decay=0.8)),
            "text_similarity": synthetic_arcs(drawn.topic, 2, Reading(last=50, power=4)),
        },
        load_encoder=lambda path: MeanUsers(),
    )
    engine = Engine(Bundle.open(folder / "bundle", lambda path: MeanUsers()), threads=1)
    requests = [Request(user_id=str(user), k=K) for user in range(QUERIES)]
    engine.recommend(requests[:BATCH])
    compared, seconds, alone = _Compared(), 0.0, 0.0
    for start in range(0, QUERIES, BATCH):
        some = requests[start : start + BATCH]
        began = time.perf_counter()
        engine.recommend(some)
        seconds += time.perf_counter() - began
        engine.recommend(some, compared)
        history = [np.asarray(histories.items[int(request.user_id or 0)], np.int64) for request in some]
        read = Ragged.of(history)
        users = engine.user_codes.of(read, engine.state.codes)
        began = time.perf_counter()
        engine.user_codes.of(read, engine.state.codes)
        engine.state.index.search(engine.state.queries(users), K, history)
        alone += time.perf_counter() - began
    recall = recall_audit.of([answered.share() for answered in compared.waiting], K)
    return {
        "recall_at_10_1m": recall.recall,
        "recall_at_10_1m_low": recall.low,
        "ms_a_query_1m": 1000 * seconds / QUERIES,
        "ms_a_query_index_alone_1m": 1000 * alone / QUERIES,
        "items": float(items),
    }


@contextmanager
def endpoint(command: Sequence[str], path: Sequence[Path], port: int) -> Iterator[tuple[str, int]]:
    """A server in a process of its own with these import paths; its URL once it answers, and the process's id."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, path))}
    process = subprocess.Popen([sys.executable, *command], env=environment, cwd=path[0])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(10)


def requests_a_second(before: Path, folder: Path, seconds: float) -> dict[str, float]:
    """Requests a second and p99 now and in the checkout ``before``, in turn, medians of three."""
    root, found = Path(__file__).resolve().parent.parent, {}
    paths = {"before": [before, before / "benchmarks"], "now": [root, root / "benchmarks"]}
    (folder / "before").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths["before"]))}
    made = [sys.executable, "-c", _BEFORE, str(folder / "before"), str(THIN)]
    subprocess.run(made, env=environment, check=True, timeout=600, cwd=before)
    (folder / "now").mkdir()
    make_bundle(folder / "now", items=THIN)
    loads: dict[str, list[Any]] = {"before": [], "now": []}
    memory: dict[str, list[float]] = {"before": [], "now": []}
    for _ in range(3):
        for name, path in paths.items():
            port, bundle = free_port(), str(folder / name / "bundle")
            command = [str(root / "benchmarks" / "bare_server.py"), bundle, str(port), "32"]
            with endpoint(command, path, port) as (url, process):
                loads[name].append(measured(url, seconds)[CROWD])
                memory[name].append(psutil.Process(process).memory_info().rss / 1e9)
    for name, each in loads.items():
        found[f"rps_{name}"] = float(np.median([load.rps for load in each]))
        found[f"p99_ms_{name}"] = float(np.median([load.percentile(99) for load in each]))
        found[f"resident_gb_{name}"] = float(np.median(memory[name]))
    return found | {"rps_over_before": found["rps_now"] / found["rps_before"]}


def main() -> None:
    """Measure what is asked for and write ``results/served.json``."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--beauty", type=Path, default=Path("runs/beauty"), help="a run on Amazon Beauty")
    options.add_argument("--ml100k", type=Path, default=Path("runs/demo"), help="a run on MovieLens-100K")
    options.add_argument("--before", type=Path, help="an earlier checkout to compare requests a second with")
    options.add_argument("--items", type=int, default=MILLION, help="of the synthetic catalogue; 0 for none")
    options.add_argument("--seconds", type=float, default=6.0, help="of each load")
    asked = options.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in ("beauty", "ml100k"):
        share = agreement(Run(getattr(asked, name)))
        found[f"agreement_{name}"] = share
        if share is None:
            print(f"{getattr(asked, name)}: no run with a bundle; agreement_{name} is left out")
    with tempfile.TemporaryDirectory() as folder:
        if asked.items:
            (Path(folder) / "million").mkdir()
            found |= million(asked.items, Path(folder) / "million")
        if asked.before:
            found |= requests_a_second(asked.before, Path(folder), asked.seconds)
    found["users"] = USERS
    keep("served", found, tuple(name for name in HEADLINES if found.get(name) is not None))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
