"""Made-up graphs for benchmarks, drawn alike on every machine."""

from __future__ import annotations

import numpy as np

CHUNK = 1_000_000


def power_law(nodes: int, edges: int, seed: int, exponent: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Source and target rows, int32 (edges,), of a Chung-Lu graph whose degrees follow a power law.

    Both ends of an edge are drawn with weights (rank + 10) ** (-1 / (exponent - 1)), the cumulative sum searched for
    uniform numbers; ranks are then spread over the rows at random. Loops and parallel edges stay in.
    """
    rng = np.random.default_rng(seed)
    until = np.cumsum((np.arange(nodes) + 10.0) ** (-1 / (exponent - 1)))
    row_of = rng.permutation(nodes).astype(np.int32)
    ends = np.empty((2, edges), dtype=np.int32)
    for start in range(0, edges, CHUNK):
        for side in ends[:, start : start + CHUNK]:
            # Rounding may carry a number to the very end of the sum.
            side[:] = row_of[np.minimum(np.searchsorted(until, rng.random(len(side)) * until[-1], "right"), nodes - 1)]
    return ends[0], ends[1]
