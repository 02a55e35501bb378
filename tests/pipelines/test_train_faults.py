"""Training goes on through real faults, on a Ray cluster of two nodes, to where the unbroken run would have ended."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import training_faults as faults
from loopback_s3 import LoopbackS3
from training_faults import Cluster, Job, Outcome

SAME = 1e-4
"""Relative tolerance of "the same metrics": the order of float32 sums is all that may differ."""
AWAY = 2.0
"""Seconds for which the store refuses connections. In a run of one's own minutes are allowed for."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return faults.prepare(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as started:
        yield started


@pytest.fixture(scope="module")
def unbroken(prepared, cluster) -> Outcome:
    done = faults.unbroken(Job(prepared, "unbroken", cluster))
    assert done.repeated() == 0
    # There is something to lose: it learns, and the metric is not at its end.
    assert done.curve[-1]["loss"] < 0.95 * done.curve[0]["loss"]
    assert 0.1 < done.curve[-1]["ndcg@10"] < 0.9
    return done


def same(found: Outcome, expected: Outcome) -> None:
    assert [r["epoch"] for r in found.curve] == [r["epoch"] for r in expected.curve]
    for key in ("loss", "ndcg@10"):
        np.testing.assert_allclose([r[key] for r in found.curve], [r[key] for r in expected.curve], rtol=SAME)


def went_on_inside(found: Outcome, epoch: int) -> None:
    """Not from the beginning, nor from that of the epoch, which would end in the same metrics too."""
    first, second = found.lives()
    assert second[0].place.epoch == epoch
    assert second[0].place.step > 1
    assert 0 < found.repeated() <= first[-1].place.step
    assert len({note.place for life in (first, second) for note in life}) + found.repeated() == len(first + second)


def test_a_worker_killed_inside_an_epoch_costs_a_few_steps_and_no_metric(prepared, cluster, unbroken):
    place = faults.place_of(5)
    found = faults.worker_killed(Job(prepared, "worker", cluster), place)
    went_on_inside(found, place.epoch)
    same(found, unbroken)


def test_a_driver_killed_inside_an_epoch_is_started_again_and_goes_on_there(prepared, cluster, unbroken):
    place = faults.place_of(6)
    found = faults.driver_killed(Job(prepared, "driver", cluster), place)
    went_on_inside(found, place.epoch)
    same(found, unbroken)


def test_a_store_away_for_a_while_stops_nobody_and_loses_nothing(prepared, cluster, unbroken):
    place = faults.place_of(7)
    with LoopbackS3() as s3:
        job = Job(prepared, "store", cluster, s3.uri())
        found, seen = faults.store_away(job, place, s3, AWAY)
        left = faults.direct_store(job, s3).names()
    assert seen.steps >= 4
    assert len(seen.checkpoints) > 2
    assert len(set(seen.checkpoints)) == 1
    assert None not in seen.checkpoints
    assert left[-1].startswith(f"checkpoint-{len(unbroken.curve):06d}-")
    assert found.repeated() == 0
    same(found, unbroken)


def test_a_lost_node_is_replaced_and_training_goes_on(prepared, cluster, unbroken):
    place = faults.place_of(8)
    job = Job(prepared, "node", cluster)
    found = faults.node_lost(job, place)
    went_on_inside(found, place.epoch)
    same(found, unbroken)
    # What the user sees must not go with a node either.
    lines = [json.loads(line) for line in (job.run.root / "logs" / "run.jsonl").read_text().splitlines()]
    told = [line["epoch"] for line in lines if line["event"] == "epoch" and line["system"] == "SETRec"]
    assert told == [r["epoch"] for r in unbroken.curve]
