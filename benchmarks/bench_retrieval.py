"""Indexes against exact search, 12 thousand to 1 million items: recall, time of single queries, memory, filters.

Codes and queries are synthetic (``codes``). Every index is built and tuned by ``Retriever.build`` for recall 0.99 on
queries of its own; the figures come from other queries. Exact search and the index take turns, in blocks. Times are
the processor's, of the one thread that searches: on a busy machine the clock stretches long queries, so exact search,
more than short ones.
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
from codes import World, world
from harness import median

from serving.retrieval.recall_audit import share
from serving.retrieval.retriever import INDEX, Hits, Retriever, RetrieverSettings

K, TARGET, TUNE = 10, 0.99, 200
BLOCK = 20
SELECTIVITIES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001)
HEADLINES = ("recall_at_10_1m", "exact_over_chosen_time_1m", "bytes_per_item_1m")
KINDS = ("ivf_sq8", "ivf_pq", "ivf")
MILLION = 1_000_000

Search = Callable[[int], Hits]


def build(kind: str, codes: np.ndarray, queries: np.ndarray) -> tuple[Retriever, float]:
    """The index and the seconds it took, on all cores."""
    settings = RetrieverSettings.model_validate({"kind": kind, "recall_target": TARGET, "tune_queries": TUNE})
    before, start = os.environ.get("OMP_NUM_THREADS", "1"), time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
    try:
        return Retriever.build(codes, settings, queries), time.perf_counter() - start
    finally:
        os.environ["OMP_NUM_THREADS"] = before


def index_bytes(retriever: Retriever) -> float:
    """Bytes an item of the index as saved; the float32 codes, needed to re-score, are not among them."""
    if retriever.kind == "exact":
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        retriever.save(folder)
        return (Path(folder) / INDEX).stat().st_size / len(retriever)


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


def searcher(retriever: Retriever, queries: np.ndarray, mask: np.ndarray | None = None) -> Search:
    return lambda q: retriever.search(queries[q : q + 1], K, allowed=None if mask is None else [mask])[0]


def describe(retriever: Retriever, seconds: float, exact: Retriever, queries: np.ndarray) -> dict[str, Any]:
    plan, size = retriever.plan, index_bytes(retriever)
    found: dict[str, Any] = against(searcher(exact, queries), searcher(retriever, queries), len(queries))
    found |= {"index_bytes_per_item": round(size, 1), "code_bytes_per_item": 4 * retriever.codes.shape[1]}
    return found | {"build_seconds": round(seconds, 1), "effort": plan.effort, "oversample": plan.oversample}


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


class Size:
    """One size of catalogue, with the figures found so far."""

    def __init__(self, items: int, asked: int) -> None:
        self.world = world(items, 2 * TUNE + asked)
        self.training, self.queries = self.world.queries[: 2 * TUNE], self.world.queries[2 * TUNE :]
        self.exact, _ = build("exact", self.world.codes, self.training)
        self.kinds: dict[str, Any] = {}
        self.found: dict[str, Any] = {"codes": self.world.describe(), "kinds": self.kinds}

    def choose(self) -> Retriever:
        """What ``auto`` takes."""
        chosen = self._measured("auto")
        self.found |= {"auto": chosen.kind, "why": chosen.plan.reason}
        return chosen

    def filter(self, chosen: Retriever) -> None:
        """Filters through ``chosen``, or where that is exact search, through the first of ``KINDS``."""
        searched = self._measured(KINDS[0]) if chosen.kind == "exact" else chosen
        self.found |= {"filtered_kind": searched.kind}
        self.found |= {"filtered": filtered(self.world, self.exact, searched, self.queries[: 2 * BLOCK])}

    def other(self, kind: str, until: float) -> None:
        """Figures of ``kind``; none, but the reason, where it takes too long or is not begun ``until`` then."""
        if kind not in self.kinds and time.monotonic() > until:
            self.kinds[kind] = {"left_out": "no time left in this run"}
        elif kind not in self.kinds:
            self._measured(kind)
        print(len(self.exact), kind, self.kinds[kind], flush=True)

    def _measured(self, kind: str) -> Retriever:
        built, seconds = build(kind, self.world.codes, self.training)
        self.kinds[built.kind] = describe(built, seconds, self.exact, self.queries)
        return built


def headlines(found: dict[str, Any]) -> dict[str, float]:
    """The figures of the kind chosen at a million; the memory is that of the index."""
    chosen = found["kinds"][found["auto"]]
    return dict(
        zip(HEADLINES, (chosen["recall"], chosen["exact_over_time"], chosen["index_bytes_per_item"]), strict=True)
    )


def main() -> None:
    """Measure and write ``results/retrieval.json``, anew after each index; what ``auto`` takes comes first."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=[MILLION, 100_000, 12_000])
    options.add_argument("--queries", type=int, default=200, help="for each figure")
    options.add_argument("--seconds", type=float, default=420, help="after which no further index is begun")
    asked = options.parse_args()
    until, sizes, found = time.monotonic() + asked.seconds, dict[int, Size](), dict[str, Any]()
    for items in asked.sizes:
        sizes[items] = Size(items, asked.queries)
        chosen = sizes[items].choose()
        found[str(items)] = sizes[items].found
        if items == MILLION:
            found |= headlines(found[str(items)])
        write(found)
        if items >= 100_000:
            sizes[items].filter(chosen)
            write(found)
        print(items, json.dumps(found[str(items)], indent=1), flush=True)
    for items, kind in itertools.product(sorted(sizes), KINDS):
        sizes[items].other(kind, until)
        write(found)


def write(found: dict[str, Any]) -> None:
    keep("retrieval", found, tuple(key for key in HEADLINES if key in found))


if __name__ == "__main__":
    main()
