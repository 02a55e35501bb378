"""What a model gains from more of a long history than its latest items: ``--run`` is a trained and evaluated run.

Long histories are those that users have (200 items and more), and made ones of 500 and more: before a user's own items
stand those of the users of most like taste (cosine of item sets), the nearest last, without the item that is asked for.
Of older items *coverage* keeps those that together come nearest to all of them (facility location over item codes,
greedily), *nearest* those most like the latest ten. What is held out is ranked among all items outside the history.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipelines.common.run_directory import Run
from pipelines.data import directory
from pipelines.evaluation.scorer import load_weights
from setrec.data.catalog import TEST, VALID
from setrec.evaluation import ranking
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged

BUDGETS, EVERYTHING, LONG, MADE, BATCH = (50, 128, 256), 1 << 14, 200, 500, 32


def coverage(unit: np.ndarray, old: np.ndarray, new: np.ndarray, count: int) -> np.ndarray:
    alike, covered, chosen = unit[old] @ unit[old].T, (unit[old] @ unit[new].T).max(axis=1), []
    for _ in range(count):
        gain = np.maximum(alike - covered[:, None], 0).sum(axis=0)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        covered = np.maximum(covered, alike[:, chosen[-1]])
    return old[np.sort(chosen)]


def nearest(unit: np.ndarray, old: np.ndarray, new: np.ndarray, count: int) -> np.ndarray:
    return old[np.sort(np.argsort(-(unit[old] @ unit[new[-10:]].T).max(axis=1), kind="stable")[:count])]


Policy = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray] | None
POLICIES: dict[str, tuple[Policy, float]] = {
    "latest": (None, 0.0),
    "coverage, a quarter": (coverage, 0.25),
    "coverage, half": (coverage, 0.5),
    "nearest, half": (nearest, 0.5),
}


def selected(unit: np.ndarray, history: np.ndarray, budget: int, policy: Policy, share: float) -> np.ndarray:
    if policy is None or len(history) <= budget:
        return history[-budget:]
    older = int(budget * share)
    new, old = history[older - budget :], history[: older - budget]
    return np.concatenate([policy(unit, old, new, older), new])


def made(known: Ragged, similarity: np.ndarray, user: int, truth: np.ndarray) -> np.ndarray:
    own, before = known[user], list[np.ndarray]()
    held = np.concatenate([own, truth])
    for other in np.argsort(-similarity[user], kind="stable"):
        before.insert(0, known[other][~np.isin(known[other], held)])
        held = np.concatenate([held, before[0]])
        if len(held) - len(truth) >= MADE:
            break
    return np.concatenate([*before, own])


def ndcg(scores: np.ndarray, histories: list[np.ndarray], truths: list[np.ndarray]) -> np.ndarray:
    found = np.zeros(len(scores))
    for row, (own, history, truth) in enumerate(zip(scores, histories, truths, strict=True)):
        own[history] = -np.inf
        rank = int((own > own[truth[0]]).sum())
        found[row] = 1 / np.log2(rank + 2) if rank < 10 else 0.0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--users", type=int, default=160, help="Of made histories.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(given.run)
    catalog, histories = directory.load(run.data)
    model, weights = SetRecModel.from_pretrained(run.model).eval(), load_weights(run).slots
    codes, cases, known = model.item_codes(), ranking.Cases.of(histories, TEST), histories.upto(VALID)
    unit = codes.numpy() / np.linalg.norm(codes.numpy(), axis=1, keepdims=True)
    sets = np.zeros((len(known), len(catalog)), np.float32)
    sets[known.row_of_value, known.values] = 1
    sets /= np.maximum(1, np.linalg.norm(sets, axis=1, keepdims=True))
    similarity = sets @ sets.T
    np.fill_diagonal(similarity, -1)
    lengths = known.lengths[cases.users]
    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(np.flatnonzero(lengths >= 20))[: given.users])
    long = np.flatnonzero(lengths >= LONG)
    groups = {
        "own": ([cases.history[c] for c in long], [cases.truth[c] for c in long]),
        "made": (
            [made(known, similarity, int(cases.users[c]), cases.truth[c]) for c in some],
            [cases.truth[c] for c in some],
        ),
    }
    for group, (whole, truths) in groups.items():
        base: np.ndarray | None = None
        for budget in (*BUDGETS, EVERYTHING):
            model.config.max_items = budget
            for name, (policy, share) in POLICIES.items():
                if budget == EVERYTHING and policy is not None:
                    continue
                began = time.process_time()
                kept = [selected(unit, history, budget, policy, share) for history in whole]
                chosen, values = time.process_time(), []
                for start in range(0, len(kept), BATCH):
                    rows = slice(start, start + BATCH)
                    users = model.user_codes(Ragged.of(kept[rows]), weights, codes)
                    values.append(ndcg((users @ codes.T).numpy().copy(), whole[rows], truths[rows]))
                ended, each = time.process_time(), np.concatenate(values)
                base = each if base is None else base
                gain = each - base
                row = {"histories": group, "users": len(whole), "budget": budget, "policy": name}
                row |= {"ndcg@10": each.mean(), "gain": gain.mean(), "se": gain.std() / len(gain) ** 0.5}
                row |= {
                    "select_ms": 1e3 * (chosen - began) / len(whole),
                    "read_ms": 1e3 * (ended - chosen) / len(whole),
                }
                print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
