"""Knowledge-graph completion at a budget of CPU minutes: the model, DistMult alone, and what each part adds.

``--data DIR`` holds ``triples`` and perhaps ``entities`` with texts; ``--vectors FILE`` is a NumPy file (V, w) of their
vectors, whose making is not part of the budget. One thread. Metrics are filtered, over all entities, both directions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from nodetok import files, kge
from nodetok.knowledge.completer import CompletionSettings, Knowledge, train
from nodetok.settings import GraphDataSettings, RandomSplit, TokenizerSettings
from nodetok.tokenizer import NodeTokenizer

Scores = Callable[[np.ndarray], dict[str, np.ndarray]]


def metrics(scores_of: Scores, data: Knowledge, test: np.ndarray, most: int) -> dict[str, str]:
    """Filtered metrics of each of the named scores on ``most`` triples of the test part, with 95% intervals."""
    asked, answers, known = kge.held_out(np.concatenate([data.train, data.valid]), test, most, 0)
    ranks: dict[str, list[np.ndarray]] = {}
    for rows in np.array_split(np.arange(len(asked)), max(1, len(asked) // 128)):
        for name, scores in scores_of(asked[rows]).items():
            ranks.setdefault(name, []).append(kge.filtered_ranks(scores, answers[rows], known.take(rows)))
    return {name: summary(np.concatenate(own)) for name, own in ranks.items()}


def _named(name: str, model: kge.KgeRanker, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: model.scores(rows)}


def summary(ranks: np.ndarray) -> str:
    """The metrics of ranks (Q,) in words."""
    values = {"MRR": 1 / ranks, **{f"Hits@{k}": ranks <= k for k in (1, 3, 10)}}
    return ", ".join(f"{k} {v.mean():.4f} ± {1.96 * v.std() / len(v) ** 0.5:.4f}" for k, v in values.items())


def main() -> None:
    """Train at each budget and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--vectors", type=Path)
    options.add_argument("--minutes", type=float, nargs="+", default=[5.0, 20.0])
    options.add_argument("--test", type=int, default=1_000_000, help="test triples at most")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--systems", nargs="+", choices=("ours", "DistMult"), default=["ours", "DistMult"])
    asked = options.parse_args()
    torch.set_num_threads(1)
    read = files.read_triples(asked.data, GraphDataSettings(split=RandomSplit(valid=0.05, test=0.05)))
    vectors = None if asked.vectors is None else np.load(asked.vectors, allow_pickle=False)
    tokens = NodeTokenizer.fit(read.graph, TokenizerSettings()).transform()
    data = Knowledge(read.train, read.valid, len(read.ids), len(read.relations), vectors, read.texts, tokens)
    for minutes in asked.minutes:
        results = ours(data, read.test, minutes, asked.seed, asked.test) if "ours" in asked.systems else {}
        if "DistMult" in asked.systems:
            settings = CompletionSettings().embedding.model_copy(update={"kind": "distmult"})
            began = time.process_time()
            alone = kge.train_kge(
                data.train, data.entities, data.relations, data.valid, asked.seed, settings, seconds=60 * minutes
            )
            print(f"DistMult {(time.process_time() - began) / 60:.1f} minutes, best epoch {alone.best_epoch}")
            results |= metrics(partial(_named, "DistMult", alone), data, read.test, asked.test)
        for name, line in results.items():
            print(f"  {name}: {line}", flush=True)


def ours(data: Knowledge, test: np.ndarray, minutes: float, seed: int, most: int) -> dict[str, str]:
    """Train the model, and return the metrics of the whole and of the whole without each part."""
    began = time.process_time()
    made = train(data, 60 * minutes, seed, on_step=lambda share, what: print(f"  {share:.0%} {what}", flush=True))
    spent = (time.process_time() - began) / 60
    weights = {} if made.fusion is None else {name: round(value, 3) for name, value in made.fusion.weights.items()}
    print(f"{minutes} minutes ({spent:.1f} spent), weights {weights}, validation {made.curve[-1]['value']:.4f}")

    def of_parts(rows: np.ndarray) -> dict[str, np.ndarray]:
        parts = made.parts(rows)
        left_out = {"whole": ""} | {f"without {name}": name for name, weight in weights.items() if weight}
        return {name: made.mix(rows, parts, without) for name, without in left_out.items()}

    return metrics(of_parts, data, test, most)


if __name__ == "__main__":
    main()
