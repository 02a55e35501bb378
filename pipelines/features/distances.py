"""Distances to anchors on a Ray cluster, a block of anchors at a time, for graphs too large for one process.

The graph's arrays are in the object store once per machine; finished blocks are written to a matrix on disk, so that no
process ever holds all columns.
"""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nodetok import distances
from nodetok.graph import Graph
from nodetok.settings import DistanceSettings
from pipelines.common.cluster import free_threads, ray_session
from pipelines.common.progress import Bar, bar
from setrec.atomic import atomic_file
from setrec.errors import ConfigError

RETRIES = 3
"""Number of retries of a block after its worker died or ran out of memory."""


def distances_on_cluster(
    graph: Graph,
    anchors: np.ndarray,
    settings: DistanceSettings,
    out: Path,
    block: int = 64,
    address: str | None = None,
    progress: Bar | None = None,
) -> np.ndarray:
    """Compute the distances of every node to the anchors, as :func:`nodetok.distances.distances`, and write ``out``.

    ``out`` is a NumPy file, written completely or not at all; the returned matrix is mapped from it, and writing to the
    matrix does not change the file. ``block``: anchors per task; hops take 64 in one sweep. ``address``: of the
    cluster, default this machine. ``progress``: where to show it, default a new bar.

    Raises:
        ConfigError: no anchors, or one outside the graph, or a block failed permanently; the message has the reason.
    """
    anchors = np.ascontiguousarray(anchors, dtype=np.int64)
    if block < 1:
        raise ConfigError(f"a block needs at least one anchor, not {block}")
    if not len(anchors):
        raise ConfigError("distances need at least one anchor")
    distances.refuse_outside(anchors, len(graph))
    views = [_bare(view, settings) for view in distances.views(graph, settings)]
    shape = (len(graph), len(anchors) * len(views))
    dtype = np.uint8 if settings.kind == "hops" else np.float32
    with (
        nullcontext(progress) if progress else bar("Measure distances") as shown,
        ray_session(address),
        atomic_file(out) as path,
    ):
        table: Any = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        table = _fill(table, path, views, anchors, settings, block, shown)
        table.flush()
        del table
    # Copy on write: PyTorch accepts only writable arrays.
    measured: np.ndarray = np.load(out, mmap_mode="c")
    return measured


def _bare(view: Graph, settings: DistanceSettings) -> Graph:
    """Return only the arrays, with the reverse graph if every task would have to compute it."""
    bare = replace(view, ids=None, texts=None)
    if settings.kind == "weighted":
        _ = bare.reverse  # stored in the object, and therefore sent with it
    return bare


def _fill(
    table: np.ndarray, path: Path, views: list[Graph], anchors: np.ndarray, settings: DistanceSettings, block: int,
    shown: Bar,
) -> np.ndarray:  # fmt: skip
    """Return the filled table; a new one at the same path if a block contains longer paths than its type holds."""
    import ray
    from ray.exceptions import RayError

    waiting = deque((i, start) for i in range(len(views)) for start in range(0, len(anchors), block))
    total = len(waiting)
    threads = free_threads(total)
    room = max(1, int(ray.cluster_resources().get("CPU", 1)) // threads)
    task: Any = ray.remote(_measure)
    task = task.options(num_cpus=threads, max_retries=RETRIES, retry_exceptions=[MemoryError, OSError])
    stored = [ray.put(view) for view in views]
    running: dict[Any, int] = {}
    note = f"{threads} thread{'s' if threads > 1 else ''} a block of {block} anchors"
    shown.update(0, total, note)
    try:
        while waiting or running:
            # At most as many tasks as the cluster can run and one spare each, since finished blocks fill the object
            # store.
            while waiting and len(running) < 2 * room:
                i, start = waiting.popleft()
                rows = anchors[start : start + block]
                running[task.remote(stored[i], rows, settings, threads)] = i * len(anchors) + start
            done, _ = ray.wait(list(running), num_returns=1)
            column, found = running.pop(done[0]), ray.get(done[0])
            if found.dtype.itemsize > table.dtype.itemsize:
                table = _widened(table, path, found.dtype)
            table[:, column : column + found.shape[1]] = distances.as_type(found, table.dtype)
            del found, done
            shown.update(total - len(waiting) - len(running), total, note)
    except RayError as error:
        for reference in running:
            ray.cancel(reference, force=True)
        cause = str(getattr(error, "cause", None) or error).strip().splitlines()
        raise ConfigError(f"distances failed: {cause[-1] if cause else type(error).__name__}") from error
    return table


def _widened(table: np.ndarray, path: Path, kind: np.dtype[Any]) -> np.ndarray:
    """Return ``table`` with a wider type, replaced on disk, some rows at a time."""
    beside = path.with_name(f"{path.name}.wide")
    wide = np.lib.format.open_memmap(beside, mode="w+", dtype=kind, shape=table.shape)
    for start in range(0, len(table), 1 << 20):
        rows = slice(start, start + (1 << 20))
        wide[rows] = distances.as_type(table[rows], kind)
    beside.replace(path)
    return wide


def _measure(view: Graph, anchors: np.ndarray, settings: DistanceSettings, threads: int) -> np.ndarray:
    """Compute one block, in a worker."""
    import numba

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    return distances.measure(view, anchors, settings)
