"""What weights of event types are worth: MovieLens-100K's ratings as types, the components without a model.

The same test items (what the weights hold above 0) are ranked from histories whose events weigh as the types say
(*weighed*), that hold the same events all alike (*alike*), and that lack those below 0 (*left out*). Weights of the
score are searched anew for each on validation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipelines.data import directory
from pipelines.data.settings import DataSettings
from pipelines.evaluation.scorer import hybrid_scorer
from pipelines.ingest.ingest import ingest
from setrec.data.catalog import TEST, TRAIN, VALID, Histories
from setrec.evaluation import ranking
from setrec.evaluation.intervals import standard_error
from setrec.scoring.search.weight_search import halves, search

TYPES = {
    "likes differ": {"1": 0.5, "2": 0.7, "3": 1, "4": 1.2, "5": 1.5},
    "1 and 2 against": {"1": -1, "2": -1, "3": 1, "4": 1, "5": 1},
    "both": {"1": -1, "2": -0.5, "3": 1, "4": 2, "5": 3},
}


def ndcg(histories: Histories, cases: ranking.Cases, items: int) -> np.ndarray:
    trained, known = histories.trained(items), histories.events(VALID)
    weights = search(None, halves(histories, timed=False), trained, None).weights
    asked, every = ranking.Cases(cases.users, known.take(cases.users), cases.truth), np.ones(items, bool)
    scorer = hybrid_scorer(None, weights, known, trained, None)
    found = ranking.evaluate(scorer, asked, [ranking.Group("all", every, every)], ks=(10,))
    return found.tables["removed", "all"]["ndcg@10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="ml-100k.inter and ml-100k.item, as RecBole has them.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, events in TYPES.items():
        columns = {"user": "user_id", "item": "item_id", "timestamp": "timestamp", "event": "rating"}
        config = DataSettings(
            interactions=given.data / "ml-100k.inter", items=given.data / "ml-100k.item", events=events,
            columns={**columns, "text": ["movie_title"], "attributes": ["class"]},
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            ingest(config, Path(folder) / "data")
            catalog, made = directory.load(Path(folder) / "data")
        alike, above = replace(made.items, weights=None), made.items.weights > 0
        variants = {
            "alike": Histories(made.user_ids, alike, np.where(above, made.splits, TRAIN).astype(np.int8)),
            "left out": Histories(made.user_ids, alike.where(above), made.splits[above]),
            "weighed": made,
        }
        cases = ranking.Cases.of(made, TEST)
        values = {kind: ndcg(histories, cases, len(catalog)) for kind, histories in variants.items()}
        for kind, each in values.items():
            difference = each - values["alike"]
            row = {"types": name, "histories": kind, "users": len(each), "ndcg@10": round(float(each.mean()), 4)}
            row |= {"gain": round(float(difference.mean()), 4), "se": round(standard_error(difference), 4)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
