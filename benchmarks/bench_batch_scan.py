"""Exact search of queries that share a scan, as ``serving.retrieval.exact`` has FAISS do it and by FAISS's own rule."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

import faiss
import numpy as np
from harness import measure, median, print_table, write_results

from serving.retrieval import exact
from serving.retrieval.exact import Exact

ITEMS, WIDTH, K, SEEN = 12_000, 192, 10, 6
QUERIES = (1, 2, 4, 8, 16, 32, 64, 256)


def timed(search: Exact, queries: np.ndarray, banned: list[np.ndarray]) -> Callable[[], float]:
    """Milliseconds of the processor a query, of queries that are asked together, over some 512 of them."""
    count = len(queries)
    times = max(1, 512 // count)

    def run() -> float:
        start = time.process_time()
        for _ in range(times):
            search.first(queries, [K] * count, banned, [K] * count)
        return 1000 * (time.process_time() - start) / (times * count)

    return run


def by_own_rule(run: Callable[[], float]) -> Callable[[], float]:
    """The same where FAISS decides how it scans."""

    def patched() -> float:
        with patch.object(exact, "flat_scan", nullcontext):
            return run()

    return patched


def main() -> None:
    """Print a table for each number of queries, and write milliseconds a query and ratios."""
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    queries = rng.normal(size=(max(QUERIES), WIDTH)).astype(np.float32)
    search = Exact(codes)
    figures: dict[str, float] = {}
    for count in QUERIES:
        ours = timed(search, queries[:count], [rng.permutation(ITEMS)[:SEEN] for _ in range(count)])
        found = measure({"FAISS's rule": by_own_rule(ours), "ours": ours}, repeats=5)
        print_table(f"{count} queries", "ms a query", found, "FAISS's rule")
        figures[f"ms_{count}"] = median(found["ours"])
        figures[f"times_as_fast_{count}"] = median(found["FAISS's rule"]) / median(found["ours"])
    write_results("batch_scan", figures)


if __name__ == "__main__":
    main()
