"""Knowledge-graph completion at a budget of CPU minutes: the model, DistMult alone, and what each part adds.

``--data DIR`` holds ``triples`` and perhaps ``entities`` with texts; ``--vectors FILE`` is a NumPy file (V, w) of their
vectors, whose making is not part of the budget. One thread. Metrics are filtered, over all entities, both directions.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from nodetok import files, kge
from nodetok.files import GraphDataSettings
from nodetok.knowledge.completer import Completer, Knowledge, train
from nodetok.splits import RandomSplit
from nodetok.tokenizer import NodeTokenizer, TokenizerSettings


def metrics(scores_of: object, data: Knowledge, test: np.ndarray, most: int) -> dict[str, float]:
    """Filtered metrics on ``most`` triples of the test part."""
    asked, answers, known = kge.held_out(np.concatenate([data.train, data.valid]), test, most, 0)
    ranks = []
    for rows in np.array_split(np.arange(len(asked)), max(1, len(asked) // 128)):
        ranks.append(kge.filtered_ranks(scores_of(asked[rows]), answers[rows], known.take(rows)))  # type: ignore[operator]
    found = np.concatenate(ranks)
    return {"MRR": float((1 / found).mean()), **{f"Hits@{k}": float((found <= k).mean()) for k in (1, 3, 10)}}


def main() -> None:
    """Train at each budget and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--vectors", type=Path)
    options.add_argument("--minutes", type=float, nargs="+", default=[5.0, 20.0])
    options.add_argument("--test", type=int, default=1_000_000, help="test triples at most")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--no-distmult", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)
    read = files.read_triples(asked.data, GraphDataSettings(split=RandomSplit(valid=0.05, test=0.05)))
    vectors = None if asked.vectors is None else np.load(asked.vectors, allow_pickle=False)
    tokens = NodeTokenizer.fit(read.graph, TokenizerSettings()).transform()
    data = Knowledge(read.train, read.valid, len(read.ids), len(read.relations), vectors, read.texts, tokens)
    for minutes in asked.minutes:
        began = time.process_time()
        made = train(
            data, 60 * minutes, asked.seed, on_step=lambda share, what: print(f"  {share:.0%} {what}", flush=True)
        )
        spent = (time.process_time() - began) / 60
        print(
            f"{minutes} minutes ({spent:.1f} spent), weights {made.weights}, validation {made.curve[-1]['value']:.4f}"
        )
        print("  whole", metrics(made.scores, data, read.test, asked.test), flush=True)
        for name in made.weights:
            less = Completer(made.paths, made.embedding, made.tokens, made.vectors, {**made.weights, name: 0.0})
            if made.weights[name]:
                print(f"  without {name}", metrics(less.scores, data, read.test, asked.test), flush=True)
        if not asked.no_distmult:
            alone = kge.train_kge(
                data.train, data.entities, data.relations, data.valid, asked.seed, seconds=60 * minutes
            )
            print("  DistMult alone", metrics(alone.scores, data, read.test, asked.test), flush=True)


if __name__ == "__main__":
    main()
