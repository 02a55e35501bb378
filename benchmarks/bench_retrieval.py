"""Indexes against exact search, 12 thousand to 10 million items: recall, time of single queries, memory, filters, live
items.

    python bench_retrieval.py
    python bench_retrieval.py --sizes 10000000 --root FOLDER      # 10 GB of files; needs as much memory to be fair

Codes and queries are synthetic (``codes``). Every index is built and tuned by ``Retriever.build`` for recall 0.99 on
queries of its own; the figures come from other queries. Exact search and the index take turns, in blocks. Times are
the processor's, of the one thread that searches: on a busy machine the clock stretches long queries, so exact search,
more than short ones. Above a million items, codes and index are memory-mapped files in ``--root``, as a server has
them, and both are used again if they are there. Figures of other sizes are kept in the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_serving import keep
from codes import World, stored, world
from harness import median, previous
from memory import Sampler

from serving.retrieval.live_index import LiveIndex
from serving.retrieval.recall_audit import share
from serving.retrieval.retriever import INDEX, META, Hits, Retriever, RetrieverSettings

K, TARGET, TUNE = 10, 0.99, 200
BLOCK = 20
SELECTIVITIES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001)
MILLION = 1_000_000
NAMES = {MILLION: "1m", 10 * MILLION: "10m"}
HEADLINES = tuple(
    f"{figure}_{name}"
    for name in NAMES.values()
    for figure in ("recall_at_10", "exact_over_chosen_time", "bytes_per_item")
)
KINDS = ("ivf_sq8", "ivf_pq", "ivf")
CELL_BYTES = 4
"""The number of an item's cell, which filtered queries read."""
LIVE, NOISE = 100_000, 0.05

Search = Callable[[int], Hits]


def build(kind: str, codes: np.ndarray, queries: np.ndarray) -> tuple[Retriever, dict[str, float]]:
    """The index, and CPU minutes and memory without pages of files that it took, on ``OMP_NUM_THREADS`` threads."""
    settings = RetrieverSettings.model_validate({"kind": kind, "recall_target": TARGET, "tune_queries": TUNE})
    start = time.process_time()
    with Sampler(os.getpid()) as sampler:
        built = Retriever.build(codes, settings, queries)
    took = {"build_cpu_seconds": round(time.process_time() - start, 1), "build_gb": round(sampler.peak.held, 2)}
    return built, took


def index_bytes(retriever: Retriever) -> float:
    """Bytes an item of the index as saved and of the cell numbers; the float32 codes, needed to re-score, are not among
    them."""
    if retriever.kind == "exact":
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        retriever.save(folder)
        return (Path(folder) / INDEX).stat().st_size / len(retriever) + CELL_BYTES


def against(exact: Search, other: Search, count: int) -> dict[str, float]:
    """Recall@10 and median milliseconds of ``other`` and of ``exact``, which take turns over ``count`` queries."""
    times: dict[Search, list[float]] = {exact: [], other: []}
    hits: dict[Search, list[Hits]] = {exact: [], other: []}
    for start in range(0, count, BLOCK):
        block = range(start, min(start + BLOCK, count))
        for search in times:
            search(block[0])
            for query in block:
                begun = time.thread_time()
                found = search(query)
                times[search].append(1000 * (time.thread_time() - begun))
                hits[search].append(found)
    recalls = [share(o.scores, e.scores) for e, o in zip(hits[exact], hits[other], strict=True)]
    return {
        "recall": round(float(np.mean(recalls)), 4),
        "ms": round(median(times[other]), 3),
        "exact_ms": round(median(times[exact]), 3),
        "exact_over_time": round(median(times[exact]) / median(times[other]), 2),
    }


def searcher(retriever: Retriever | LiveIndex, queries: np.ndarray, mask: np.ndarray | None = None) -> Search:
    return lambda q: retriever.search(queries[q : q + 1], K, allowed=None if mask is None else [mask])[0]


def describe(retriever: Retriever, took: dict[str, float], exact: Retriever, queries: np.ndarray) -> dict[str, Any]:
    plan, size = retriever.plan, index_bytes(retriever)
    found: dict[str, Any] = against(searcher(exact, queries), searcher(retriever, queries), len(queries))
    found |= {"index_bytes_per_item": round(size, 1), "code_bytes_per_item": 4 * retriever.codes.shape[1]}
    return found | took | {"effort": plan.effort, "oversample": plan.oversample}


def masks(of: World, seed: int = 1) -> dict[str, np.ndarray]:
    """Filters that let through single items at random, and ones that let through whole topics."""
    rng, items, found = np.random.default_rng(seed), len(of.codes), {}
    order, topics = rng.permutation(items), rng.permutation(of.topic.max() + 1)
    by_topic = np.argsort(topics[of.topic], kind="stable")
    for name, rows in (("items", order), ("topics", by_topic)):
        for selectivity in SELECTIVITIES[name == "topics" :]:
            mask = np.zeros(items, dtype=bool)
            mask[rows[: round(selectivity * items)]] = True
            found[f"{100 * selectivity:g}% of {name}"] = mask
    return found


def filtered(of: World, exact: Retriever, retriever: Retriever, queries: np.ndarray) -> dict[str, Any]:
    return {
        name: against(searcher(exact, queries, mask), searcher(retriever, queries, mask), len(queries))
        for name, mask in masks(of).items()
    }


def live(chosen: Retriever, queries: np.ndarray) -> dict[str, float]:
    """:data:`LIVE` items put after the index was built, like random ones of it, against exact search of all."""
    rng, index = np.random.default_rng(2), LiveIndex(chosen)
    rows = np.sort(rng.choice(len(chosen), min(LIVE, len(chosen)), replace=False))
    codes = chosen.codes[rows] * (1 + NOISE * rng.normal(size=(len(rows), chosen.codes.shape[1]))).astype(np.float32)
    start = time.process_time()
    for code in rng.permutation(codes):
        index.add(code)
    put = time.process_time() - start
    everything = index.exact
    found = against(lambda q: everything.best(queries[q], K), searcher(index, queries), len(queries))
    return found | {"items": len(rows), "put_us": round(1e6 * put / len(rows), 1)}


class Size:
    """One size of catalogue, with the figures found so far; above a million items its files are in ``root``."""

    def __init__(self, items: int, asked: int, root: Path) -> None:
        self.root = root if items > MILLION else None
        drawn = 2 * TUNE + asked
        self.world = world(items, drawn) if self.root is None else stored(self.root, items, drawn)
        self.training, self.queries = self.world.queries[: 2 * TUNE], self.world.queries[2 * TUNE :]
        self.exact, _ = build("exact", self.world.codes, self.training)
        self.kinds: dict[str, Any] = {}
        self.found: dict[str, Any] = {"codes": self.world.describe(), "kinds": self.kinds}

    def choose(self) -> Retriever:
        """What ``auto`` takes."""
        chosen = self._measured("auto", None if self.root is None else self.root / f"index-{len(self.exact)}")
        self.found |= {"auto": chosen.kind, "why": chosen.plan.reason}
        return chosen

    def filter(self, chosen: Retriever) -> None:
        """Filters through ``chosen``, or where that is exact search, through the first of ``KINDS``; live items."""
        searched = self._measured(KINDS[0]) if chosen.kind == "exact" else chosen
        queries = self.queries[: 2 * BLOCK if len(chosen) <= MILLION else BLOCK // 2]
        self.found |= {"live": live(searched, queries), "filtered_kind": searched.kind}
        self.found |= {"filtered": filtered(self.world, self.exact, searched, queries)}

    def other(self, kind: str, until: float) -> None:
        """Figures of ``kind``; none, but the reason, where it takes too long or is not begun ``until`` then."""
        if kind not in self.kinds and time.monotonic() > until:
            self.kinds[kind] = {"left_out": "no time left in this run"}
        elif kind not in self.kinds:
            self._measured(kind)
        print(len(self.exact), kind, self.kinds[kind], flush=True)

    def _measured(self, kind: str, folder: Path | None = None) -> Retriever:
        if folder is None or not (folder / META).exists():
            built, took = build(kind, self.world.codes, self.training)
            if folder is not None:
                folder.mkdir(exist_ok=True)
                (folder / "took.json").write_text(json.dumps(took))
                built.save(folder)
        if folder is not None:
            built, took = Retriever.load(folder, self.world.codes), json.loads((folder / "took.json").read_text())
        self.kinds[built.kind] = describe(built, took, self.exact, self.queries)
        return built


def headlines(found: dict[str, Any], name: str) -> dict[str, float]:
    """The figures of the kind chosen at a size; the memory is that of the index."""
    chosen = found["kinds"][found["auto"]]
    figures = (chosen["recall"], chosen["exact_over_time"], chosen["index_bytes_per_item"])
    return dict(zip([key for key in HEADLINES if key.endswith(f"_{name}")], figures, strict=True))


def main() -> None:
    """Measure and write ``results/retrieval.json``, anew after each index; what ``auto`` takes comes first."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", type=int, nargs="+", default=[MILLION, 100_000, 12_000])
    options.add_argument("--queries", type=int, default=200, help="for each figure")
    options.add_argument("--seconds", type=float, default=420, help="after which no further index is begun")
    options.add_argument("--root", type=Path, help="folder for sizes above a million; default: a temporary one")
    asked = options.parse_args()
    until, sizes, found = time.monotonic() + asked.seconds, dict[int, Size](), previous("retrieval")
    with tempfile.TemporaryDirectory() as temporary:
        for items in asked.sizes:
            sizes[items] = Size(items, asked.queries, asked.root or Path(temporary))
            chosen = sizes[items].choose()
            found[str(items)] = sizes[items].found
            if items in NAMES:
                found |= headlines(found[str(items)], NAMES[items])
            write(found)
            print(items, json.dumps(found[str(items)], indent=1), flush=True)
            if items >= 100_000:
                sizes[items].filter(chosen)
                write(found)
                print(items, json.dumps(found[str(items)], indent=1), flush=True)
        for items, kind in itertools.product(sorted(size for size in sizes if size <= MILLION), KINDS):
            sizes[items].other(kind, until)
            write(found)


def write(found: dict[str, Any]) -> None:
    keep("retrieval", found, tuple(key for key in HEADLINES if key in found))


if __name__ == "__main__":
    main()
