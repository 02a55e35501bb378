"""The cache of users in the engine: requests a second and CPU time with and without it, and bytes a user.

The bundle has the demonstration's size and random weights (``serving_bundle``), but reads up to 1,024 items. Every
request follows one event of its user, so the cached engine reads one item and the other one the whole history; both
have a store of their own and take turns. *slides*: the model reads 50 of 200 items, so every event moves the window and
no history is found in the cache.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_serving import keep
from harness import measure, median, print_table
from serving_bundle import ITEMS, make_bundle

from serving.bundle.reader import Bundle
from serving.engine.engine import Engine, Request
from serving.stores import Event, open_store
from serving.telemetry import metrics

USERS, BATCHES, MOST, ROOM = 16, (1, 16), 1024, 1 << 30
CASES = {"50": (50, MOST), "200": (200, MOST), "1000": (1000, MOST), "200_slides": (200, 50)}
"""Items of a history, and the maximum number that the model reads."""
HEADLINES = ("cpu_ratio_50", "cpu_ratio_200", "cpu_ratio_1000", "cpu_ratio_200_slides")


class Side:
    """An engine with a store of its own, and users whose histories grow by an event before each request."""

    def __init__(self, bundle: Bundle, file: Path, items: int, cache_bytes: int) -> None:
        self._store = open_store(str(file))
        self._engine = Engine(bundle, store=self._store, user_cache_bytes=cache_bytes)
        self._rng, self._time = np.random.default_rng(0), 0.0
        self.wall: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        for _ in range(items):
            self._event()
        self._answer(1)

    def run(self, batch: int) -> float:
        """Answer each user twice, ``batch`` at a time; return CPU milliseconds a request."""
        cpu = wall = 0.0
        for _ in range(2):
            self._event()
            began, clock = time.process_time(), time.perf_counter()
            self._answer(batch)
            cpu, wall = cpu + time.process_time() - began, wall + time.perf_counter() - clock
        self.wall[batch].append(2 * USERS / wall)
        return 1000 * cpu / (2 * USERS)

    def close(self) -> None:
        """Free the cache and close the store."""
        self._engine.retire()
        self._store.close()

    def _event(self) -> None:
        self._time += 1
        rows = self._rng.integers(0, ITEMS, USERS).tolist()
        self._store.append([Event(f"new {user}", str(row), self._time) for user, row in enumerate(rows)])

    def _answer(self, batch: int) -> None:
        requests = [Request(user_id=f"new {user}") for user in range(USERS)]
        for start in range(0, USERS, batch):
            self._engine.recommend(requests[start : start + batch])


def case(bundle: Bundle, folder: Path, name: str, items: int, repeats: int) -> dict[str, Any]:
    """Figures of histories of ``items``."""
    before = metrics.USER_CACHE_BYTES._value.get()
    plain = Side(bundle, folder / f"plain-{name}.db", items, 0)
    cached = Side(bundle, folder / f"cached-{name}.db", items, ROOM)
    found: dict[str, Any] = {"bytes_a_user": round((metrics.USER_CACHE_BYTES._value.get() - before) / USERS)}
    for batch in BATCHES:
        hits = metrics.USER_CACHE.labels("hit")._value.get()
        cpu = measure({"plain": lambda: plain.run(batch), "cached": lambda: cached.run(batch)}, repeats)  # noqa: B023
        print_table(f"{name} items, {batch} at a time", "CPU ms a request", cpu, "plain")
        for side, values in (("plain", plain), ("cached", cached)):
            found[f"{side}_cpu_ms_at_{batch}"] = round(median(cpu[side]), 3)
            found[f"{side}_rps_at_{batch}"] = round(median(values.wall[batch][1:]), 1)  # the first is the warm-up
        found[f"cpu_ratio_at_{batch}"] = round(median(cpu["cached"]) / median(cpu["plain"]), 3)
        asked = 2 * USERS * (repeats + 1)
        found[f"hit_share_at_{batch}"] = round((metrics.USER_CACHE.labels("hit")._value.get() - hits) / asked, 3)
    plain.close()
    cached.close()
    return found


def main() -> None:
    """Measure and write ``results/user_cache.json``."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=5)
    asked = options.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder, bundles = Path(place), dict[int, Bundle]()
        for name, (items, most) in CASES.items():
            if most not in bundles:
                bundles[most] = Bundle.open(make_bundle(folder, f"bundle-{most}", most, max_items=most))
            figures[name] = case(bundles[most], folder, name, items, asked.repeats)
    figures |= {f"cpu_ratio_{name}": figures[name][f"cpu_ratio_at_{BATCHES[-1]}"] for name in CASES}
    keep("user_cache", figures, HEADLINES)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
