"""Node tokens on a power-law graph: seconds and memory at a million nodes, and against csgraph and NetworkX.

The graph is a Chung-Lu graph of exponent 2.5 with five edges a node drawn; K = 64 anchors by coverage of 2 hops. Every
measurement at a size runs in a process of its own, which draws the graph and then builds the arrays, chooses the
anchors and measures the hops; numba compiles on a small graph before the clock starts. Peak memory is that process's,
interpreter, libraries and the drawing of the graph included.

csgraph and NetworkX search from one source at a time and on one thread; theirs is timed on a few anchors and scaled to
64, and their numbers are checked to be ours. csgraph has two searches: ``dijkstra(unweighted=True)``, which gives
distances, and ``breadth_first_order``, which is faster but gives an order and predecessors only, so that its time is
a lower bound of what distances would take. NetworkX runs on a graph of 200,000 nodes, as do we beside it: its
dictionaries make larger ones impractical.

``--scale`` measures 10 thousand to 10 million nodes instead and draws docs/nodetok_scale.svg. ``--data DIR`` adds how
well similarities keep the order of hops on real graphs: DIR/cora/edges.parquet (source, target) and
DIR/wn18rr/triples.parquet (head, relation, tail, split; train only). ``--order`` measures that alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from graphs import power_law
from scipy import sparse
from scipy.sparse import csgraph

from nodetok.anchors import choose
from nodetok.distances import UNREACHABLE, hops
from nodetok.graph import Graph
from nodetok.settings import AnchorSettings

ANCHORS = AnchorSettings(count=64, radius=2)
DEGREE = 5
"""Edges drawn for each node."""
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
HEADLINES = (
    "anchor_seconds_1m_nodes", "distance_seconds_1m_nodes", "peak_gb_1m_nodes", "over_csgraph", "over_networkx",
)  # fmt: skip
PLOT = Path(__file__).parent.parent / "docs" / "nodetok_scale.svg"
STEPS = 500
"""Of training, for similarities that are trained."""


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What ``run`` returns, and its seconds."""
    began = time.perf_counter()
    found = run()
    return found, time.perf_counter() - began


def peak_gb() -> float:
    """Largest resident memory of this process so far, in 1e9 bytes."""
    # getrusage would count what the parent held when it started this process.
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    kib = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * 1024 / 1e9


def made(nodes: int, seed: int = 0) -> Graph:
    """The benchmark's graph of a size."""
    return Graph.from_arrays(*power_law(nodes, DEGREE * nodes, seed), nodes)


def worker(nodes: int) -> dict[str, float]:
    """One measurement at one size; for a process of its own."""
    small = made(2_000, seed=1)
    hops(small, choose(small, ANCHORS).rows)
    base = peak_gb()
    ends = power_law(nodes, DEGREE * nodes, seed=0)
    graph, build = timed(partial(Graph.from_arrays, *ends, nodes))
    del ends
    chosen, anchor = timed(lambda: choose(graph, ANCHORS))
    busy = time.process_time()
    table, distance = timed(lambda: hops(graph, chosen.rows))
    cores, peak = (time.process_time() - busy) / distance, peak_gb()
    return {
        "nodes": nodes, "edges": graph.edges, "coverage": chosen.coverage,
        "reached": float((table != UNREACHABLE).mean()), "build_seconds": build, "anchor_seconds": anchor,
        "distance_seconds": distance, "distance_cores": cores, "peak_gb": peak, "idle_gb": base,
    }  # fmt: skip


def apart(nodes: int, repeats: int) -> dict[str, list[float]]:
    """:func:`worker` in processes of their own, one after the other; its figures, a list each."""
    command = [sys.executable, __file__, "--worker", str(nodes)]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(repeats)]
    return {key: [run[key] for run in runs] for key in runs[0]}


def opponents_csgraph(graph: Graph, sources: int) -> dict[str, float]:
    """Times that our 64 hops are faster than csgraph's, one source at a time, scaled from ``sources`` of them."""
    import numba
    from harness import measure, median, print_table

    rows = choose(graph, ANCHORS).rows
    some, count = rows[:sources], len(rows)
    ones = np.ones(len(graph.indices))
    matrix = sparse.csr_matrix((ones, graph.indices, graph.indptr.astype(np.int32)), shape=(len(graph), len(graph)))
    theirs = csgraph.dijkstra(matrix, directed=True, indices=some, unweighted=True).T
    ours = hops(graph, some)
    assert np.array_equal(np.where(np.isinf(theirs), UNREACHABLE, theirs), ours), "csgraph disagrees"
    del theirs

    def single() -> float:
        threads = numba.get_num_threads()
        numba.set_num_threads(1)
        seconds = timed(lambda: hops(graph, rows))[1]
        numba.set_num_threads(threads)
        return count / seconds

    def search() -> None:
        for row in some:
            csgraph.breadth_first_order(matrix, row, directed=True)

    found = measure(
        {
            f"nodetok, {numba.get_num_threads()} threads": lambda: count / timed(lambda: hops(graph, rows))[1],
            "nodetok, 1 thread": single,
            "csgraph dijkstra": lambda: (
                sources
                / timed(lambda: csgraph.dijkstra(matrix, directed=True, indices=some, unweighted=True))[1]
            ),
            "csgraph search, no distances": lambda: sources / timed(search)[1],
        }
    )  # fmt: skip
    title = f"Hops to anchors, {len(graph):,} nodes, {graph.edges:,} edges; csgraph scaled from {sources} anchors"
    print_table(title, "anchors/s", found, "csgraph dijkstra")
    threads, one, dijkstra, order = (median(values) for values in found.values())
    return {
        "over_csgraph": threads / dijkstra,
        "over_csgraph_one_thread": one / dijkstra,
        "over_csgraph_search_without_distances": threads / order,
        "csgraph_nodes": len(graph),
        "csgraph_anchors_timed": sources,
    }


def opponents_networkx(graph: Graph, sources: int) -> dict[str, float]:
    """Times that our 64 hops are faster than NetworkX's, scaled from ``sources`` anchors."""
    import networkx as nx
    from harness import measure, median, print_table

    rows = choose(graph, ANCHORS).rows
    some, count = rows[:sources].tolist(), len(rows)
    source, target = graph.arcs()
    twin = nx.Graph()
    twin.add_nodes_from(range(len(graph)))
    twin.add_edges_from(zip(source.tolist(), target.tolist(), strict=True))
    del source, target
    table = hops(graph, np.array(some))
    for column, row in enumerate(some):
        found = nx.single_source_shortest_path_length(twin, row)
        assert len(found) == (table[:, column] != UNREACHABLE).sum(), "NetworkX disagrees"
        assert all(table[node, column] == length for node, length in found.items()), "NetworkX disagrees"

    def theirs() -> None:
        for row in some:
            nx.single_source_shortest_path_length(twin, row)

    found = measure(
        {
            "nodetok": lambda: count / timed(lambda: hops(graph, rows))[1],
            "NetworkX": lambda: sources / timed(theirs)[1],
        }
    )
    title = f"Hops to anchors, {len(graph):,} nodes, {graph.edges:,} edges; NetworkX scaled from {sources} anchors"
    print_table(title, "anchors/s", found, "NetworkX")
    return {
        "over_networkx": median(found["nodetok"]) / median(found["NetworkX"]),
        "networkx_nodes": len(graph),
        "networkx_anchors_timed": sources,
    }


def at_size(nodes: int, repeats: int) -> dict[str, float]:
    """Medians at one size, printed."""
    from harness import median
    from rich.console import Console
    from rich.table import Table

    found = apart(nodes, repeats)
    table = Table(title=f"{nodes:,} nodes, {int(found['edges'][0]):,} edges, K = 64, c = 2; {repeats} processes")
    for name in ("", "median", "min", "max"):
        table.add_column(name, justify="left" if not name else "right")
    names = {
        "build_seconds": "build arrays, s", "anchor_seconds": "choose anchors, s", "distance_seconds": "hops, s",
        "distance_cores": "cores that hops got", "peak_gb": "peak memory, GB",
        "idle_gb": "of that before the graph, GB",
    }  # fmt: skip
    for key, name in names.items():
        values = found[key]
        table.add_row(name, f"{median(values):.3f}", f"{min(values):.3f}", f"{max(values):.3f}")
    Console().print(table)
    return {key: median(values) for key, values in found.items()}


def scale(sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """One process a size (three below a million nodes), printed and drawn."""
    from rich.console import Console
    from rich.table import Table

    from setrec.atomic import atomic_file

    rows = [at_size(nodes, 3 if nodes < 1_000_000 else 1) for nodes in sizes]
    table = Table(title=f"{DEGREE} edges a node drawn, K = 64, c = 2")
    for name in ("nodes", "edges", "arrays, s", "anchors, s", "hops, s", "peak GB"):
        table.add_column(name, justify="right")
    for r in rows:
        seconds = (f"{r[key]:.2f}" for key in ("build_seconds", "anchor_seconds", "distance_seconds"))
        table.add_row(f"{int(r['nodes']):,}", f"{int(r['edges']):,}", *seconds, f"{r['peak_gb']:.2f}")
    Console().print(table)
    with atomic_file(PLOT) as path:
        path.write_text(drawn(rows))
    Console().print(f"drawn: {PLOT}")
    return rows


def drawn(rows: list[dict[str, float]]) -> str:
    """Seconds and memory by size as one SVG file, both axes logarithmic."""
    from plots import stacked

    seconds = {"build_seconds": "arrays", "anchor_seconds": "anchors", "distance_seconds": "hops"}
    charts = {
        "seconds": {name: [row[key] for row in rows] for key, name in seconds.items()},
        "peak GB of memory": {"peak memory": [row["peak_gb"] for row in rows]},
    }
    return stacked([row["nodes"] for row in rows], charts, "number of nodes")


def real_graphs(data: Path) -> dict[str, Graph]:
    """Cora's citations and WN18RR's training triples, both without directions."""
    import pandas as pd

    cora = pd.read_parquet(data / "cora" / "edges.parquet")
    source, target = cora["source"].to_numpy(), cora["target"].to_numpy()
    triples = pd.read_parquet(data / "wn18rr" / "triples.parquet")
    triples = triples[triples["split"] == "train"]
    ends, names = pd.factorize(pd.concat([triples["head"], triples["tail"]]))
    head, tail = np.split(ends, 2)
    return {
        "Cora": Graph.from_arrays(source, target, int(max(source.max(), target.max())) + 1),
        "WN18RR": Graph.from_arrays(head, tail, len(names)),
    }


def orders(name: str, graph: Graph) -> dict[str, dict[str, float]]:
    """Order accuracy and Kendall's tau of every similarity at K = 64, on pivots that no training saw."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from nodetok import order
    from nodetok.settings import PositionSettings, TokenizerSettings
    from nodetok.tokenizer import NodeTokenizer

    plain = NodeTokenizer.fit(graph, TokenizerSettings(anchors=ANCHORS))
    raw = plain.table
    trained = {"fitted tau": PositionSettings(steps=STEPS)}
    unseen = np.random.default_rng([PositionSettings().seed, 1])
    used = order.sample_pivots(graph, PositionSettings().pivots, unseen, without=plain.anchors.rows)
    rng = np.random.default_rng(7)
    pivots = order.sample_pivots(graph, 200, rng, without=np.concatenate([used, plain.anchors.rows]))
    triplets = order.sample_triplets(graph, pivots, 100_000, rng)

    exponential = np.exp(-2.0 * raw.astype(np.float32)) * (raw != UNREACHABLE)
    similarities: dict[str, tuple[order.Similarity, np.ndarray]] = {
        "raw Euclidean": (order.euclidean, raw),
        "max difference": (order.max_difference, raw),
        "min-sum": (order.min_sum, raw),
        "exp(-2d), inner product": (order.inner_product, exponential),
        "exp(-2d), Euclidean": (order.euclidean, exponential),
        "default tokenizer": (_of(plain), plain.transform()),
    }
    torch.manual_seed(0)
    for title, settings in trained.items():
        fitted = NodeTokenizer.of(graph, TokenizerSettings(anchors=ANCHORS, positions=settings), plain.anchors, raw)
        similarities[title] = (_of(fitted), fitted.transform())
    table = Table(title=f"{name}: {len(graph):,} nodes, {graph.edges:,} edges, K = 64, {len(pivots)} pivots")
    for column in ("similarity", "order accuracy", "Kendall's tau"):
        table.add_column(column, justify="left" if column == "similarity" else "right")
    found = {}
    for title, (similarity, positions) in similarities.items():
        accuracy = triplets.accuracy(similarity, positions)
        tau = order.kendall(graph, pivots[:50], similarity, positions)
        found[title] = {"order_accuracy": accuracy, "kendall": tau}
        table.add_row(title, f"{accuracy:.4f}", f"{tau:.4f}")
    Console().print(table)
    return found


def _of(tokenizer: Any) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    import torch

    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            pair = (torch.from_numpy(np.ascontiguousarray(x)) for x in (a, b))
            return tokenizer.positions.similarity(*pair).numpy()

    return similarity


def keep(section: str, content: Any) -> None:
    """Write one section of the results and leave the others; ``figures`` also puts the headlines on top."""
    from harness import RESULTS, write_results

    from setrec.atomic import atomic_file

    file = RESULTS / "nodetok.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    write_results("nodetok", content if section == "figures" else {})
    fresh = json.loads(file.read_text())
    if section == "figures":
        record = {**before, **fresh, **{key: content[key] for key in HEADLINES}}
    else:
        about = {key: fresh[key] for key in ("environment", "command")}
        record = {**(before or fresh), section: {"figures": content, **about}}
    with atomic_file(file) as path:
        path.write_text(json.dumps(record, indent=2))


def main() -> None:
    """A million nodes and the opponents; other measurements by option."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--worker", type=int, metavar="NODES", help="measure once in this process, print JSON")
    options.add_argument("--scale", action="store_true", help="only measure 10 thousand to 10 million nodes")
    options.add_argument("--largest", type=int, default=SIZES[-1], help="leave out larger sizes of --scale")
    options.add_argument("--order", action="store_true", help="only measure the order of --data")
    options.add_argument("--data", type=Path, help="folder with cora/ and wn18rr/")
    options.add_argument("--nodes", type=int, default=1_000_000, help="fewer for a trial; nothing is written then")
    asked = options.parse_args()
    if asked.worker:
        print(json.dumps(worker(asked.worker)))
        return
    if asked.scale:
        keep("scale", scale(tuple(size for size in SIZES if size <= asked.largest)))
        return
    trial = asked.nodes != 1_000_000
    if not asked.order:
        figures = at_size(asked.nodes, repeats=3)
        found = {
            "build_seconds_1m_nodes": figures["build_seconds"],
            "anchor_seconds_1m_nodes": figures["anchor_seconds"],
            "distance_seconds_1m_nodes": figures["distance_seconds"],
            "distance_cores_1m_nodes": figures["distance_cores"],
            "peak_gb_1m_nodes": figures["peak_gb"],
            "edges_1m_nodes": figures["edges"],
            "coverage_1m_nodes": figures["coverage"],
            **opponents_csgraph(made(asked.nodes), sources=4),
            **opponents_networkx(made(min(200_000, asked.nodes)), sources=2),
            "threads": os.cpu_count() or 1,
        }
        if not trial:
            keep("figures", found)
    if asked.data is None:
        print("Order of similarities: skipped, no --data DIR with cora/ and wn18rr/ given")
        return
    kept = {name: orders(name, graph) for name, graph in real_graphs(asked.data).items()}
    if not trial:
        keep("order", kept)


if __name__ == "__main__":
    main()
