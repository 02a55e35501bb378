"""What a fault costs a training: seconds and steps against the same training unbroken, and whether it ends elsewhere.

Two workers on a Ray cluster of two nodes of this machine, a checkpoint every two steps. Of each fault: seconds
lost in all, seconds until the next step (processes that start anew make up most of both), steps done again, and the
largest differences of loss and NDCG@10 over the epochs. Faults strike at steps drawn by a seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import training_faults as faults
from bench_serving import keep
from harness import RESULTS
from loopback_s3 import LoopbackS3
from training_faults import Cluster, Job, Outcome

USERS, EPOCHS, STEPS = 300, 4, 50
AWAY = 60.0
"""Seconds for which the store refuses connections."""
FAULTS = ("worker_killed", "driver_killed", "store_away", "node_lost")


def difference(found: Outcome, expected: Outcome, key: str) -> float:
    """The largest over the epochs."""
    return max(abs(a[key] - b[key]) for a, b in zip(found.curve, expected.curve, strict=True))


def describe(found: Outcome, expected: Outcome) -> dict[str, Any]:
    """The figures of one fault."""
    return {
        "seconds_lost": round(found.seconds - expected.seconds, 1),
        "seconds_until_next_step": round(found.standstill(), 1),
        "steps": len({note.place for note in found.notes if note.place.rank == 0}),
        "steps_done_again": found.repeated(),
        "loss_difference": difference(found, expected, "loss"),
        "ndcg@10_difference": difference(found, expected, "ndcg@10"),
        "last_loss": found.curve[-1]["loss"],
        "last_ndcg@10": found.curve[-1]["ndcg@10"],
    }


def strike(name: str, prepared: Path, cluster: Cluster) -> Outcome:
    """One training with the fault ``name``."""
    place = faults.place_of(FAULTS.index(name), EPOCHS, STEPS)
    if name == "worker_killed":
        return faults.worker_killed(Job(prepared, name, cluster), place)
    if name == "driver_killed":
        return faults.driver_killed(Job(prepared, name, cluster), place)
    if name == "node_lost":
        return faults.node_lost(Job(prepared, name, cluster), place)
    with LoopbackS3() as s3:
        return faults.store_away(Job(prepared, name, cluster, s3.uri()), place, s3, AWAY)[0]


def run(only: Sequence[str]) -> dict[str, Any]:
    """The faults in ``only``, each against the training unbroken, started the way that one is."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, Cluster() as cluster:
        prepared = faults.prepare(Path(folder), USERS, EPOCHS)
        faults.unbroken(Job(prepared, "warm-up", cluster))
        unbroken = faults.unbroken(Job(prepared, "unbroken", cluster))
        found["unbroken"] = {"seconds": round(unbroken.seconds, 1), "last_loss": unbroken.curve[-1]["loss"]}
        print("unbroken", found["unbroken"], flush=True)
        for name in only:
            expected = unbroken
            if name == "driver_killed":
                expected = faults.unbroken_command(Job(prepared, "command", cluster))
            found[name] = describe(strike(name, prepared, cluster), expected)
            print(name, found[name], flush=True)
    return found


def main() -> None:
    """Measure and write ``results/training_faults.json``; what is not measured anew stays as it was."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", nargs="+", choices=FAULTS, default=FAULTS)
    asked = options.parse_args()
    file = RESULTS / "training_faults.json"
    before = json.loads(file.read_text())["figures"] if file.exists() else {}
    found = before | run(asked.only)
    keep("training_faults", found, tuple(found))


if __name__ == "__main__":
    main()
