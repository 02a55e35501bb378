"""How well positions keep the order of hops, by the strategy that chose the anchors.

Made-up graphs on which most candidates cover equally much, and with ``--data DIR`` Cora and WN18RR (see
``bench_nodetok.py``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from bench_nodetok import real_graphs

from nodetok.graph import Graph
from nodetok.settings import AnchorSettings


def shapes() -> dict[str, Graph]:
    """Graphs on which most candidates for an anchor cover equally much."""
    import networkx as nx

    given = {
        "grid 60x60": nx.grid_2d_graph(60, 60),
        "path of 10,000": nx.path_graph(10_000),
        "ring of 2,000": nx.cycle_graph(2_000),
        "binary tree, 11 levels": nx.balanced_tree(2, 11),
        "random tree of 4,000": nx.random_labeled_tree(4_000, seed=1),
        "small world of 3,000": nx.connected_watts_strogatz_graph(3_000, 4, 0.02, seed=1),
        "scale-free of 3,000": nx.barabasi_albert_graph(3_000, 2, seed=1),
    }
    return {name: Graph.from_networkx(graph) for name, graph in given.items()}


def strategies(graphs: dict[str, Graph], seeds: int = 3) -> dict[str, dict[str, float]]:
    """Order accuracy of the default tokenizer by strategy, K = 64; of random anchors the mean over seeds."""
    from rich.console import Console
    from rich.table import Table

    from nodetok import order
    from nodetok.settings import TokenizerSettings
    from nodetok.tokenizer import NodeTokenizer

    names = ("coverage", "random", "degree")
    table = Table(title="Order accuracy by anchors, K = 64, 60 pivots, 20,000 triplets")
    for column in ("graph", *names):
        table.add_column(column, justify="left" if column == "graph" else "right")
    found: dict[str, dict[str, float]] = {}
    for name, graph in graphs.items():
        rng = np.random.default_rng(99)
        drawn = order.sample_triplets(graph, order.sample_pivots(graph, 60, rng), 20_000, rng)
        found[name] = {}
        for strategy in names:
            values = []
            for seed in range(seeds if strategy == "random" else 1):
                anchors = AnchorSettings(strategy=strategy, seed=seed)
                tokenizer = NodeTokenizer.fit(graph, TokenizerSettings(anchors=anchors))
                values.append(drawn.accuracy(order.inner_product, tokenizer.transform()))
            found[name][strategy] = float(np.mean(values))
        table.add_row(name, *(f"{found[name][strategy]:.3f}" for strategy in names))
    Console().print(table)
    return found


def main() -> None:
    """Measure and print; the results are kept where real graphs are measured too."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, help="folder with cora/ and wn18rr/")
    asked = options.parse_args()
    found = strategies({**shapes(), **(real_graphs(asked.data) if asked.data else {})})
    if asked.data:
        from harness import write_results

        write_results("anchors", {f"{name}, {kind}": v for name, own in found.items() for kind, v in own.items()})


if __name__ == "__main__":
    main()
