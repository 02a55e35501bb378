"""Our ItemKNN and SASRec beside those of other libraries, on the same training data and in the same ranking.

    python benchmarks/check_opponents.py PROBLEM [--epochs 20]

``PROBLEM``: the folder that ``setrec benchmark`` prepared (``RUN/problem``). ``implicit`` (its CosineRecommender) and
``rectools`` (its SASRecModel; needs pytorch-lightning) are no dependencies of this project: what is missing is left
out. Validation users are ranked, whose histories are those of training, which is all that RecTools knows of a user.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pipelines.benchmark.base import problem
from pipelines.benchmark.base.problem import Problem
from setrec.evaluation import ranking
from setrec.models import sasrec
from setrec.scoring import baselines
from setrec.training import sasrec_trainer

NEIGHBOURS, K, BATCH = 1000, 10, 256


def report(name: str, scorer: ranking.Scorer, given: Problem) -> None:
    """Recall and NDCG over all items, history removed."""
    found = ranking.evaluate(scorer, given.valid, ranking.warm_cold_groups(given.trained)[:1], ks=(K,), batch=BATCH)
    print(f"{name:32} recall@10 {found.mean('recall@10'):.4f}  ndcg@10 {found.mean('ndcg@10'):.4f}", flush=True)


def listed(lists: np.ndarray, given: Problem) -> ranking.Scorer:
    """A scorer of lists (users, K) of item rows of the validation users in order, -1 where a list ends."""
    row, place = np.nonzero(lists >= 0)
    scores = sp.csr_matrix((np.float32(K) - place, (row, lists[row, place])), (len(lists), given.items))
    start = iter(range(0, len(lists), BATCH))
    return lambda history: scores[(at := next(start)) : at + len(history)].toarray()


def check_item_knn(given: Problem, epochs: int) -> None:
    """Cosine of items over users, all items of the history alike."""
    from implicit.nearest_neighbours import CosineRecommender

    rows = given.train
    seen = sp.csr_matrix((np.ones(len(rows.values)), rows.values, rows.offsets), (len(rows), given.items))
    theirs = CosineRecommender(K=NEIGHBOURS + 1)  # an item is its own first neighbour there
    theirs.fit(seen, show_progress=False)
    lists, scores = theirs.recommend(given.valid.users, seen[given.valid.users], N=K, filter_already_liked_items=True)
    report("implicit, CosineRecommender", listed(np.where(scores > 0, lists, -1), given), given)
    settings = baselines.ItemKnnSettings(neighbours=NEIGHBOURS, shrink=0.0, decay=1.0, last=1 << 30)
    report("ItemKNN, alike", baselines.ItemKnn(given.histories, given.items, settings), given)


def check_sasrec(given: Problem, epochs: int) -> None:
    """One layer of width 64, softmax over all items; theirs trains as many epochs, ours takes the best of them."""
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    rows, times = given.train, pd.Timestamp(2000, 1, 1) + pd.to_timedelta(np.arange(len(given.train.values)), unit="s")
    table = pd.DataFrame({"user_id": rows.row_of_value, "item_id": rows.values, "weight": 1.0, "datetime": times})
    shape = {"n_factors": 64, "n_blocks": 1, "n_heads": 2, "session_max_len": 50, "dropout_rate": 0.3}
    theirs = SASRecModel(**shape, loss="softmax", lr=1e-3, batch_size=128, epochs=epochs)
    data = Dataset.construct(table)
    found = theirs.fit(data).recommend(users=given.valid.users, dataset=data, k=K, filter_viewed=True)
    place = pd.Series(np.arange(len(given.valid)), index=given.valid.users)
    lists = np.full((len(given.valid), K), -1)
    lists[place[found["user_id"]].to_numpy(), found["rank"].to_numpy() - 1] = found["item_id"]
    report("RecTools, SASRecModel", listed(lists, given), given)
    settings = sasrec.SasRecSettings(layers=1, epochs=epochs, learning_rate=1e-3, targets_per_batch=512)
    model = sasrec_trainer.train_sasrec(given.histories, given.items, settings)
    report("SASRec, alike", sasrec.scorer(model), given)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("problem", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    asked = parser.parse_args()
    for check in (check_item_knn, check_sasrec):
        try:
            check(problem.load(asked.problem), asked.epochs)
        except ImportError as missing:
            print(f"{check.__name__} is left out: {missing}")


if __name__ == "__main__":
    main()
