"""How many calls of a slow second stage find its exact ten: anchor scoring against scoring what the index brings.

    python benchmarks/bench_anchor_scoring.py --run films=runs/demo --run beauty=runs/beauty

The hybrid scorer of an evaluated run stands for the second stage, as its scores of all items are at hand. *Anchor
scoring* (ANNCUR, arXiv 2210.12579): scores of all items for ``ANCHORED`` other users, made beforehand, and a user's
scores of a few anchor items give an estimate of all of that user's scores (a CUR decomposition); half of the calls
score anchors, the other half what is estimated to be best. *Index*: all calls score what the model's own inner product
brings. Figures are the share of the exact ten that is found, by calls, over ``ASKED`` users.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from bench_serving import keep

from pipelines.common.run_directory import Run
from pipelines.data import directory
from pipelines.evaluation.scorer import hybrid_scorer, known_at_test, load_weights
from pipelines.features import item_features
from setrec.data.catalog import TEST, VALID
from setrec.models.setrec_model import SetRecModel
from setrec.rows import top_k
from setrec.scoring.model_scores import ModelScores

K, ANCHORED, ASKED, BATCH = 10, 500, 300, 50
CALLS = (20, 50, 100, 200, 500)


def scores(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The second stage's scores and the model's own, float32 (``ANCHORED`` + ``ASKED``, I), of users with a test item,
    drawn with one seed."""
    catalog, histories = directory.load(run.data)
    model, weights = SetRecModel.from_pretrained(run.model).eval(), load_weights(run)
    texts = item_features.text_features(run, catalog)
    second = hybrid_scorer(model, weights, known_at_test(histories), histories.trained(len(catalog)), texts)
    first = ModelScores(model, weights.slots)
    known = histories.upto(VALID)
    some = np.flatnonzero((known.lengths > 0) & (histories.of(TEST).lengths > 0))
    users = np.random.default_rng(0).permutation(some)[: ANCHORED + ASKED]
    parts = [known.take(users[start : start + BATCH]) for start in range(0, len(users), BATCH)]
    return np.concatenate([second(part) for part in parts]), np.concatenate([first.dense(part) for part in parts])


def found(exact: np.ndarray, scored: np.ndarray) -> float:
    """The share of the ``exact`` ten, (b, 10), that is among the columns ``scored``, (b, calls)."""
    return float(np.mean([np.isin(ten, some).mean() for ten, some in zip(exact, scored, strict=True)]))


def measured(run: Run) -> dict[str, dict[str, float]]:
    """Shares found by calls, of both ways."""
    second, first = scores(run)
    known, asked, exact = second[:ANCHORED], second[ANCHORED:], top_k(second[ANCHORED:], K)
    order = np.random.default_rng(0).permutation(second.shape[1])
    result: dict[str, dict[str, float]] = {"anchors": {}, "index": {}}
    for calls in CALLS:
        anchors = order[: calls // 2]
        guess = asked[:, anchors] @ np.linalg.pinv(known[:, anchors], rcond=1e-3) @ known
        guess[:, anchors] = asked[:, anchors]
        taken = np.concatenate([top_k(guess, calls - len(anchors)), np.tile(anchors, (len(asked), 1))], axis=1)
        result["anchors"][str(calls)] = found(exact, taken)
        result["index"][str(calls)] = found(exact, top_k(first[ANCHORED:], calls))
    return result


def main() -> None:
    """Measure and write ``results/anchor_scoring.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="append", required=True, metavar="NAME=PATH")
    torch.set_num_threads(1)
    figures = {}
    for text in parser.parse_args().run:
        name, _, path = text.partition("=")
        figures[name] = measured(Run(Path(path)))
        print(name, json.dumps(figures[name]), flush=True)
    keep("anchor_scoring", figures, tuple(figures))


if __name__ == "__main__":
    main()
