"""What explanations and diversity are worth and what they cost, and what the endpoint costs with neither.

    python benchmarks/bench_online.py --bundle films=runs/demo/bundle:class --bundle beauty=runs/b/bundle:categories

A bundle comes with the attribute that its categories are in. Users are scored on their histories without the test item;
transition graphs are built again without it. ``--before TREE`` is a checkout of another version, whose CPU time a
request is compared with.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from bench_serving import keep

from serving.bundle.reader import Bundle
from serving.engine.engine import Engine, Request
from setrec.data.catalog import TEST
from setrec.ragged import Ragged
from setrec.scoring.diversity import rerank
from setrec.scoring.hybrid import HybridScorer
from setrec.scoring.model_scores import ModelScores
from setrec.scoring.registry import Sources

K, POOL, EXPLAINED = 10, 100, 80
GRID = (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9)
ALLOWED_LOSS = 0.02


@dataclass(frozen=True)
class Held:
    """Users with a test item: histories without it, the item, and the categories of all items."""

    bundle: Bundle
    histories: Ragged
    targets: np.ndarray
    categories: list[set[str]]

    @classmethod
    def of(cls, bundle: Bundle, attribute: str, users: int) -> "Held":
        """Up to ``users`` of them, drawn with one seed."""
        items, splits = bundle.histories.items, bundle.histories.splits
        before, test = items.where(splits != TEST), items.where(splits == TEST)
        some = np.flatnonzero((before.lengths > 0) & (test.lengths > 0))
        some = np.random.default_rng(0).permutation(some)[:users]
        targets = test.values[test.offsets[some]]
        return cls(bundle, before.take(some), targets, [set(v) for v in bundle.catalog.attributes[attribute]])

    def pools(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each user the ``POOL`` best rows and their scores, without the history."""
        b = self.bundle
        before = b.histories.items.where(b.histories.splits != TEST)
        model = ModelScores(b.model, b.manifest.scorer.slots, torch.from_numpy(np.array(b.codes)))
        sources = Sources(before, len(b.catalog), None if b.texts is None else b.texts.features)
        scorer, found = HybridScorer.build(model, b.manifest.scorer, b.new, sources), []
        for start in range(0, len(self.histories), 64):
            histories = self.histories.take(np.arange(start, min(start + 64, len(self.histories))))
            for row, history in zip(scorer(histories), histories, strict=True):
                row[history] = -np.inf
                best = np.lexsort((np.arange(len(row)), -row))[:POOL]
                found.append((best, row[best]))
        return found


def mmr(scores: np.ndarray, vectors: np.ndarray, k: int, diversity: float) -> np.ndarray:
    """The alternative that subtracts the largest cosine to a chosen item (Carbonell and Goldstein 1998)."""
    relevance = (scores - scores.min()) / max(float(np.ptp(scores)), 1e-12)
    unit, nearest, left = unit_rows(vectors), np.zeros(len(scores)), np.ones(len(scores), bool)
    chosen: list[int] = []
    for _ in range(k):
        i = int(np.argmax(np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)))
        chosen.append(i)
        left[i], nearest = False, np.maximum(nearest, unit @ unit[i])
    return np.array(chosen)


def coverage(scores: np.ndarray, vectors: np.ndarray, k: int, diversity: float) -> np.ndarray:
    """The alternative that covers the candidates, weighted by their probability: facility location, submodular."""
    relevance = (scores - scores.min()) / max(float(np.ptp(scores)), 1e-12)
    weight = np.exp(scores - scores.max())
    unit = unit_rows(vectors)
    alike, covered, left = np.maximum(unit @ unit.T, 0), np.zeros(len(scores)), np.ones(len(scores), bool)
    gain = (weight[:, None] * alike).sum(axis=0)
    largest = gain.max()
    chosen: list[int] = []
    for _ in range(k):
        i = int(np.argmax(np.where(left, (1 - diversity) * relevance + diversity * gain / largest, -np.inf)))
        chosen.append(i)
        left[i], covered = False, np.maximum(covered, alike[:, i])
        gain = (weight[:, None] * np.maximum(alike - covered[:, None], 0)).sum(axis=0)
    return np.array(chosen)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def jaccard_distance(a: set[str], b: set[str]) -> float:
    """1 - |a and b| / |a or b|."""
    return 1 - len(a & b) / len(a | b) if a | b else 0.0


def quality(held: Held, lists: list[np.ndarray]) -> dict[str, float]:
    """NDCG@10, mean distance of categories inside a list, categories in a list, and the Gini index of what is shown."""
    gains, distances, kinds = [], [], []
    shown = np.zeros(len(held.bundle.catalog))
    for rows, target in zip(lists, held.targets, strict=True):
        place = np.flatnonzero(rows == target)
        gains.append(1 / np.log2(place[0] + 2) if len(place) else 0.0)
        own = [held.categories[row] for row in rows]
        distances.append(np.mean([jaccard_distance(own[i], own[j]) for i in range(len(own)) for j in range(i)]))
        kinds.append(len(set().union(*own)))
        shown[rows] += 1
    ordered, n = np.sort(shown), len(shown)
    gini = (2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum())
    return {
        "ndcg": float(np.mean(gains)),
        "distance": float(np.mean(distances)),
        "categories": float(np.mean(kinds)),
        "gini": float(gini),
    }


def diversity(held: Held) -> dict[str, object]:
    """The curve of every way to re-rank, and the most distance that costs at most 2% of NDCG."""
    pools, codes = held.pools(), held.bundle.codes
    plain, found = quality(held, [rows[:K] for rows, _ in pools]), {}
    for name, way in {"away": rerank, "mmr": mmr, "coverage": coverage}.items():
        curve = []
        for d in GRID:
            lists = [rows[way(scores, codes[rows], K, d)] for rows, scores in pools]
            curve.append({"diversity": d, **quality(held, lists)})
        within = [p for p in curve if p["ndcg"] >= (1 - ALLOWED_LOSS) * plain["ndcg"]]
        best = max(within, key=lambda p: p["distance"], default={"diversity": 0.0, **plain})
        gain = best["distance"] / plain["distance"] - 1
        found[name] = {"curve": curve, "at_2_percent": best["diversity"], "distance_gained": gain}
    return {"plain": plain, **found}


def deletions(held: Held, rng: np.random.Generator) -> dict[str, float]:
    """Whether an item falls further in the ranking without the item of the history that is named than without another.

    A score falls most by definition, for effects are measured by leaving each item out; the rank among all items is
    another figure, since the scores of the others change too. Ties count half.
    """
    engine = Engine(held.bundle, max_k=len(held.bundle.catalog))
    ids, items = held.bundle.catalog.item_ids, len(held.bundle.catalog)
    wins = []
    for history in [h for h in held.histories if len(set(h.tolist())) >= 3][:EXPLAINED]:
        names = tuple(ids[row] for row in history[-50:])
        answer = engine.recommend_one(Request(history=names, k=3, explain=True))
        assert answer.explanation is not None
        for item, effects in zip(answer.items, answer.explanation.effects, strict=True):
            if not effects:
                continue
            named = effects[0].item_id
            other = str(rng.choice(sorted(set(names) - {named})))
            ranks = []
            for left in (named, other):
                rest = tuple(name for name in names if name != left)
                order = engine.recommend_one(Request(history=rest, k=items)).items
                ranks.append([found.item_id for found in order if found.item_id != left].index(item.item_id))
            wins.append(0.5 if ranks[0] == ranks[1] else float(ranks[0] > ranks[1]))
    return shares(np.array(wins), rng)


def slots(held: Held, rng: np.random.Generator) -> dict[str, float]:
    """Whether what the slots answer is nearer to the next item, by categories, than what those of another user do."""
    engine = Engine(held.bundle)
    ids, rows = held.bundle.catalog.item_ids, {}
    for n in range(min(len(held.histories), 2 * EXPLAINED)):
        history = tuple(ids[row] for row in held.histories[n][-50:])
        explanation = engine.recommend_one(Request(history=history, k=1, explain=True)).explanation
        assert explanation is not None
        rows[n] = [held.bundle.catalog.find(near.item_id) for kind in explanation.slots.values() for near in kind]

    def distance(n: int, target: int) -> float:
        return float(np.mean([jaccard_distance(held.categories[row], held.categories[target]) for row in rows[n]]))

    others = rng.permutation(len(rows))
    own = np.array([distance(n, held.targets[n]) for n in rows])
    shuffled = np.array([distance(int(others[n]), held.targets[n]) for n in rows])
    return shares((own < shuffled) + 0.5 * (own == shuffled), rng)


def shares(wins: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """Mean and 95% bootstrap interval."""
    means = [wins[rng.integers(0, len(wins), len(wins))].mean() for _ in range(1000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {"share": float(wins.mean()), "low": float(low), "high": float(high), "cases": len(wins)}


def cost(bundle: Path, users: list[str], tree: Path, more: dict[str, object], rounds: int) -> list[float]:
    """CPU milliseconds a request, one figure for each round, of the packages in ``tree``."""
    worker = Path(__file__).with_name("online_worker.py")
    command = [sys.executable, str(worker), str(bundle), ",".join(users), "--more", json.dumps(more)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--repeats", str(rounds)], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [1000 * seconds for seconds in json.loads(done.stdout.splitlines()[-1])]


def costs(bundle: Path, before: Path | None) -> dict[str, float]:
    """Least CPU milliseconds a request, versions and settings in turn: other work on the machine only ever adds."""
    here = Path(__file__).resolve().parents[1]
    opened = Bundle.open(bundle)
    users = [opened.histories.user_ids[n] for n in np.flatnonzero(opened.histories.items.lengths)[:96]]
    plain: dict[str, object] = {}
    variants = {
        "plain": (here, bundle, plain),
        "diverse": (here, bundle, {"diversity": 0.3}),
        "explained": (here, bundle, {"explain": True}),
    }
    with TemporaryDirectory() as folder:
        if before is not None:
            variants["before"] = (before, older(bundle, Path(folder) / "bundle"), plain)
        found: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(3):
            for name, (tree, path, more) in variants.items():
                found[name] += cost(path, users[: 24 if more.get("explain") else 96], tree, more, 8)
    return {name: min(values) for name, values in found.items()}


def older(bundle: Path, copy: Path) -> Path:
    """A copy whose manifest has nothing in it that is empty, for versions that do not know such fields."""
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({name: value for name, value in manifest.items() if value}))
    return copy


def shown(name: str, figures: dict) -> dict:
    """The same figures, printed as they come."""
    print(name, json.dumps(figures), flush=True)
    return figures


def main() -> None:
    """Measure and write ``results/online.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", action="append", required=True, metavar="NAME=PATH:ATTRIBUTE")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--users", type=int, default=1500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, found = np.random.default_rng(0), {}
    for text in options.bundle:
        name, _, rest = text.partition("=")
        path, _, attribute = rest.rpartition(":")
        held = Held.of(Bundle.open(path), attribute, options.users)
        found[name] = {
            "cpu_ms_a_request": shown(name, costs(Path(path), options.before)),
            "deletion": shown(name, deletions(held, rng)),
            "slots_against_shuffled": shown(name, slots(held, rng)),
            "diversity": shown(name, diversity(held)),
        }
    every = list(found.values())
    found["deletion_beats_random_share"] = min(one["deletion"]["share"] for one in every)
    found["diversity_at_2_percent_ndcg"] = min(one["diversity"]["away"]["distance_gained"] for one in every)
    found["explain_ms"] = max(one["cpu_ms_a_request"]["explained"] - one["cpu_ms_a_request"]["plain"] for one in every)
    headlines = ["deletion_beats_random_share", "diversity_at_2_percent_ndcg", "explain_ms"]
    if options.before is not None:
        cpu = [one["cpu_ms_a_request"] for one in every]
        found["rps_over_before"] = min(one["before"] / one["plain"] for one in cpu)
        headlines.append("rps_over_before")
    keep("online", found, tuple(headlines))
    print(json.dumps({name: found[name] for name in headlines}))


if __name__ == "__main__":
    main()
