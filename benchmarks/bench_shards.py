"""An index in shards, each searched by a process of its own, against the same items in one index, in turn.

    python bench_shards.py [--items 1000000] [--shards 2]

Codes and queries as in ``bench_retrieval.py``, one query at a time. Milliseconds are those of the clock, because a
query's work is spread over processes, which need a core each; CPU milliseconds are the sum over all of them. ``held``
is a process's memory without pages of files after the queries, ``resident`` with the pages of the index and codes that
they have read.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from bench_retrieval import BLOCK, TARGET, TUNE, K
from codes import world
from harness import median, write_results
from safetensors.numpy import save_file

from serving.deployment.shards import RemoteShard
from serving.retrieval import shards
from serving.retrieval.recall_audit import share
from serving.retrieval.retriever import Retriever, RetrieverSettings
from setrec.mapped import mapped


def memory(process: psutil.Process) -> dict[str, float]:
    """In 1e9 bytes: held without pages of files, and resident."""
    found = process.memory_full_info()
    return {"held_gb": round((found.rss - found.shared) / 1e9, 3), "resident_gb": round(found.rss / 1e9, 3)}


def cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def compared(variants: dict[str, Retriever], processes: dict[str, list[psutil.Process]], queries: np.ndarray,
             exact: Retriever) -> dict[str, Any]:  # fmt: skip
    """Recall@10, median milliseconds and CPU milliseconds of a query."""
    found: dict[str, Any] = {}
    best = exact.search(queries, K)
    for name, retriever in variants.items():
        hits = retriever.search(queries, K)
        recalls = [share(h.scores, b.scores) for h, b in zip(hits, best, strict=True)]
        found[name] = {"recall": round(float(np.mean(recalls)), 4)}
    walls: dict[str, list[float]] = {name: [] for name in variants}
    spent = dict.fromkeys(variants, 0.0)
    for start in range(0, len(queries), BLOCK):
        for name, retriever in variants.items():
            before = cpu(processes[name])
            for query in queries[start : start + BLOCK]:
                begun = time.perf_counter()
                retriever.search(query[None], K)
                walls[name].append(1000 * (time.perf_counter() - begun))
            spent[name] += cpu(processes[name]) - before
    for name, own in walls.items():
        found[name] |= {"ms": round(median(own), 2), "cpu_ms": round(1000 * spent[name] / len(own), 2)}
    return found


def main() -> None:
    """Measure and write ``results/shards.json``."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=int, default=1_000_000)
    options.add_argument("--shards", type=int, default=2)
    options.add_argument("--queries", type=int, default=400)
    asked = options.parse_args()
    of = world(asked.items, 2 * TUNE + asked.queries)
    training, queries = of.queries[: 2 * TUNE], of.queries[2 * TUNE :]
    with tempfile.TemporaryDirectory() as name:
        folders = {"whole": Path(name) / "whole", "shards": Path(name) / "shards"}
        settings = RetrieverSettings(kind="ivf_pq", recall_target=TARGET, tune_queries=TUNE)
        for folder, count in zip(folders.values(), (1, asked.shards), strict=True):
            folder.mkdir()
            save_file({"codes": of.codes}, folder / "codes.safetensors")
            shards.build(of.codes, settings.model_copy(update={"shards": count}), training, folder)
        ray.init(num_cpus=asked.shards, include_dashboard=False, log_to_driver=False)
        opened: list[RemoteShard] = []

        def opener(path: Path, number: int) -> RemoteShard:
            opened.append(RemoteShard(path, number))
            return opened[-1]

        tables = {key: mapped(folder / "codes.safetensors", "codes") for key, folder in folders.items()}
        variants = {key: shards.load(folder, tables[key], opener) for key, folder in folders.items()}
        pids = [ray.get(shard.actor.__ray_call__.remote(lambda _: os.getpid())) for shard in opened]
        here, apart = psutil.Process(), [psutil.Process(pid) for pid in pids]
        exact = Retriever(
            of.codes, RetrieverSettings(kind="exact"), variants["whole"].plan, exact=variants["whole"].exact
        )
        found = compared(variants, {"whole": [here], "shards": [here, *apart]}, queries, exact)
        found["shards"]["processes"] = [memory(process) for process in apart]
        sizes = {
            key: sum(file.stat().st_size for file in folder.rglob("index.faiss")) for key, folder in folders.items()
        }
        for key, size in sizes.items():
            found[key]["index_mb"] = round(size / 1e6, 1)
        found |= {"items": asked.items, "count": asked.shards}
        ray.shutdown()
    write_results("shards", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
