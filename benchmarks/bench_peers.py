"""SASRec, ItemKNN and metrics beside those of other libraries, on the same histories, one thread each.

    for lib in rectools lenskit recbole; do python -m venv peers/$lib; peers/$lib/bin/pip install torch==2.13.0; done
    peers/rectools/bin/pip install "rectools[torch]" implicit
    peers/lenskit/bin/pip install lenskit
    peers/recbole/bin/pip install recbole ray
    python bench_peers.py --peers peers --beauty RUN --ml100k RUN

``RUN``: prepared by ``setrec prepare`` with leave-one-out. Training items are fitted on, and the next item of each user
is asked for among all items but the user's own. *Fit*: NDCG@10 by CPU seconds, ranking excluded, epoch by epoch; every
SASRec has one layer of width 64, two heads, dropout .3 and histories of 50, every ItemKNN 100 neighbours by cosine.
``sasrec_cpu_ratio`` is ours over the fastest peer's CPU time until both are within 2% of what the worse of the two
reaches, the larger of the data sets' ratios. *Ranking*: CPU seconds of ten items for every user, ``ranking_ratio``
the fastest peer's over ours with SASRec, the smaller of the data sets'; ``--ranking`` measures it alone, with models
that are hardly trained, and keeps the other figures. *Metrics*: NDCG@10 and recall@10 of all lists,
beside ranx.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_serving import keep
from harness import measure, median, previous

from pipelines.benchmark.opponents import baselines
from pipelines.common.run_directory import Run
from pipelines.data import directory
from setrec.data.catalog import VALID
from setrec.evaluation import ranking
from setrec.ragged import Ragged

HERE = Path(__file__).resolve().parent
MODELS = {
    "setrec_sasrec": None, "rectools_sasrec": "rectools", "rectools_sasrec_full": "rectools",
    "recbole_sasrec": "recbole",
    "setrec_itemknn": None, "rectools_itemknn": "rectools", "implicit_itemknn": "rectools",
    "lenskit_itemknn": "lenskit", "implicit_als": "rectools",
}  # fmt: skip
"""By name the environment of a model."""
OURS, CLOSE = "setrec_sasrec", 0.98
DATA = ("ml100k", "beauty")
HEADLINES = ("sasrec_cpu_ratio", "ranking_ratio")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")


def write_task(run: Run, path: Path) -> tuple[np.ndarray, int]:
    """Write what the workers read; returns what each asked user chose next, and the number of items."""
    catalog, histories = directory.load(run.data)
    cases, rows = ranking.Cases.of(histories, VALID), histories.upto(0)
    if (cases.truth.lengths != 1).any():
        raise SystemExit(f"{run.root}: prepare it with data.split.kind=leave_one_out")
    some = rows.lengths > 0
    place = np.cumsum(some) - 1
    rows = rows.take(np.flatnonzero(some))
    settings = {"full": json.dumps(baselines.FULL), "sampled": json.dumps(baselines.SAMPLED)}
    np.savez(path, values=rows.values, offsets=rows.offsets, items=len(catalog), asked=place[cases.users], **settings)
    return cases.truth.values, len(catalog)


def ndcg(lists: np.ndarray, truth: np.ndarray) -> float:
    """NDCG@10 of lists (u, 10) with one truth a user."""
    user, rank = np.nonzero(lists == truth[:, None])
    return float(np.bincount(user, 1 / np.log2(rank + 2), len(truth)).mean())


def fitted(name: str, task: Path, truth: np.ndarray, peers: Path, seconds: float) -> dict[str, Any] | None:
    """Run one model in its environment; ``None`` where that is not there."""
    library = MODELS[name]
    python = Path(sys.executable) if library is None else peers / library / "bin" / "python"
    if not python.exists():
        print(f"{name}: {python} is missing; left out", flush=True)
        return None
    out = task.with_name(f"{name}.npz")
    path = {"PYTHONPATH": str(HERE.parent)} if library is None else {}
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "CUDA_VISIBLE_DEVICES": "", **path}
    command = [str(python), str(HERE / "peer_worker.py"), name, str(task), str(out), str(seconds)]
    with (task.with_name(f"{name}.log")).open("w") as log:
        limit, folder = 900 + 20 * seconds, out.parent
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=limit, cwd=folder)
    if done.returncode:
        tail = task.with_name(f"{name}.log").read_text().strip().splitlines()[-1:]
        print(f"{name}: failed: {tail}", flush=True)
        return None
    with np.load(out, allow_pickle=False) as found:
        epochs = zip(found["spent"], found["lists"], strict=True)
        curve = [[round(float(spent), 2), round(ndcg(lists, truth), 5)] for spent, lists in epochs]
        record = {"curve": curve, "best": max(value for _, value in curve), "ranking_seconds": float(found["ranking"]),
                  "memory_mb": float(found["memory"])}  # fmt: skip
    rank, memory = record["ranking_seconds"], record["memory_mb"]
    print(f"{name}: NDCG@10 {record['best']:.4f}, {curve[-1][0]:.0f} CPU s, ranks in {rank:.2f} s, {memory:.0f} MB")
    return record


def seconds_to(curve: list[list[float]], value: float) -> float:
    """CPU seconds until NDCG@10 reaches ``value``."""
    return next(seconds for seconds, reached in curve if reached >= value)


def sasrec_ratios(models: dict[str, Any]) -> dict[str, float]:
    """Ours over each peer's CPU seconds until the same NDCG@10."""
    found, ours = {}, models[OURS]
    for name, peer in models.items():
        if name.endswith("itemknn") or name in (OURS, "implicit_als"):
            continue
        level = CLOSE * min(ours["best"], peer["best"])
        found[name] = seconds_to(ours["curve"], level) / seconds_to(peer["curve"], level)
    return found


def metric_seconds(truth: np.ndarray, items: int) -> dict[str, float]:
    """Seconds of NDCG@10 and recall@10 for all users from ten items each, ours and ranx's, from what each reads."""
    from ranx import Qrels, evaluate
    from ranx import Run as Ranked

    rng = np.random.default_rng(0)
    lists = np.stack([rng.choice(items, 10, replace=False) for _ in truth])
    lists[::3, 4] = truth[::3]
    names, score = [f"u{user}" for user in range(len(truth))], {rank: 10.0 - rank for rank in range(10)}
    asked = Qrels({name: {str(t): 1} for name, t in zip(names, truth, strict=True)})
    given = Ranked({n: {str(i): score[r] for r, i in enumerate(one)} for n, one in zip(names, lists, strict=True)})
    ranks = np.full(len(truth), items)
    user, rank = np.nonzero(lists == truth[:, None])
    ranks[user] = rank

    def timed(work: Any) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    found = measure(
        {
            "setrec": lambda: timed(lambda: ranking.user_metrics(Ragged(ranks, np.arange(len(truth) + 1)), (10,))),
            "ranx": lambda: timed(lambda: evaluate(asked, given, ["ndcg@10", "recall@10"])),
        }
    )
    return {name: median(values) for name, values in found.items()}


def main() -> None:
    """Measure and write ``results/peers.json``."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peers", type=Path, required=True, help="folder with an environment for each library")
    options.add_argument("--beauty", type=Path, help="a prepared run on Amazon Beauty, leave-one-out")
    options.add_argument("--ml100k", type=Path, help="a prepared run on MovieLens-100K, leave-one-out")
    options.add_argument("--seconds", type=float, default=150.0, help="CPU seconds of a fit, at least one epoch")
    options.add_argument("--ranking", action="store_true", help="only the seconds of ranking; keep all else")
    options.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    asked = options.parse_args()
    found: dict[str, Any] = previous("peers") if asked.ranking else {}
    for data in DATA:
        if (run := getattr(asked, data)) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            task = Path(folder) / "task.npz"
            truth, items = write_task(Run(run), task)
            print(f"== {data}: {len(truth)} users, {items} items", flush=True)
            seconds = 0.0 if asked.ranking else asked.seconds
            each = {n: fitted(n, task, truth, asked.peers.resolve(), seconds) for n in asked.only}
            models = {name: record for name, record in each.items() if record is not None}
        if asked.ranking:
            for name, record in models.items():
                found[data]["models"][name]["ranking_seconds"] = record["ranking_seconds"]
        else:
            found[data] = {"models": models, "metric_seconds": metric_seconds(truth, items)}
            if OURS in models:
                found[data]["sasrec_cpu_ratios"] = sasrec_ratios(models)
        if OURS in models:
            found[data]["ranking_ratios"] = {
                name: record["ranking_seconds"] / models[OURS]["ranking_seconds"]
                for name, record in models.items() if "sasrec" in name and name != OURS
            }  # fmt: skip
    parts = [found[data] for data in DATA if data in found]
    cpu = [max(part["sasrec_cpu_ratios"].values()) for part in parts if part.get("sasrec_cpu_ratios")]
    rank = [min(part["ranking_ratios"].values()) for part in parts if part.get("ranking_ratios")]
    found |= {"sasrec_cpu_ratio": max(cpu, default=None), "ranking_ratio": min(rank, default=None)}
    keep("peers", found, tuple(name for name in HEADLINES if found[name] is not None))
    print(json.dumps({name: found[name] for name in HEADLINES}))


if __name__ == "__main__":
    main()
