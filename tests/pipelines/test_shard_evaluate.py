"""Evaluation over actors on a real Ray session: the same numbers as in one process, a killed actor or not."""

import os
import shutil
import signal
import sys
import time
from functools import partial

import numpy as np
import pytest
import ray
from setrec.walk_choice import WalkChoice

from pipelines import evaluate, ingest, shard_evaluate
from pipelines.cluster import ray_session
from pipelines.config import load_config
from pipelines.runs import Run
from pipelines.shard_evaluate import Here, Pool
from pipelines.system_names import ALONE, OURS
from pipelines.systems import Systems
from setrec import baselines, ranking, scoring
from setrec.catalog import TEST, TRAIN, VALID
from setrec.errors import ConfigError, DataError

BATCH = 7
WEIGHTS = {"collaborative": 0.5, "semantic": 0.25, "structural": 0.25}


@pytest.fixture(scope="module")
def session():
    with ray_session(cpus=4):
        # This file is no module that a worker could import.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield


@pytest.fixture(scope="module")
def asked(qwen3_run):
    """What evaluation has to do on the run: how to load the systems, the histories, the groups."""
    catalog, histories = ingest.load(qwen3_run.data)
    groups = ranking.warm_cold_groups(histories.trained(len(catalog)))
    counts = histories.train_counts(len(catalog))
    knn = baselines.ItemKnn(histories, len(catalog), baselines.ItemKnnSettings(neighbours=5))
    given = {"Popularity": baselines.Popularity(counts), "ItemKNN": knn}
    choice = WalkChoice.of(histories.upto(TRAIN), len(catalog))
    return partial(Systems.load, qwen3_run.root.resolve(), given, groups, choice), histories, groups


@pytest.fixture(scope="module")
def pool(session, asked):
    pool = Pool(asked[0], 2)
    yield pool
    pool.close()


def assert_same(one: ranking.PerUser, other: ranking.PerUser) -> None:
    assert np.array_equal(one.users, other.users)
    assert one.tables.keys() == other.tables.keys()
    for key, metrics in one.tables.items():
        for name, values in metrics.items():
            assert values.tobytes() == other.tables[key][name].tobytes(), (key, name)


def test_every_system_has_the_same_metrics_user_by_user_as_in_one_process(pool, asked):
    load, histories, groups = asked
    cases, systems = ranking.Cases.of(histories, TEST), load()
    told = []
    for name in systems.names:
        one = ranking.evaluate(systems.scorer(name, WEIGHTS), cases, groups, batch=BATCH)
        over = shard_evaluate.rank(
            pool, name, WEIGHTS, cases, groups, batch=BATCH, progress=lambda *done: told.append(done)
        )
        assert_same(one, over)
        assert_same(one, shard_evaluate.rank(Here(systems), name, WEIGHTS, cases, groups, batch=BATCH))
    parts = -(-len(cases) // BATCH)
    assert told == [(done, parts) for done in range(1, parts + 1)] * len(systems.names)


def test_the_same_weights_are_chosen_on_validation(pool, asked):
    load, histories, _ = asked
    cases, model = ranking.Cases.of(histories, VALID), load().model
    grid = scoring.weight_grid(model.kinds, 0.25)
    one = ranking.choose_weights(scoring.kind_scorer(model), cases, grid, batch=BATCH)
    assert shard_evaluate.choose_weights(pool, cases, grid, batch=BATCH) == one


def test_the_same_transitions_are_chosen_and_ranked_with(pool, asked):
    load, histories, groups = asked
    systems, cases = load(), ranking.Cases.of(histories, VALID)
    one, over = (
        shard_evaluate.choose_walk(each, cases, WEIGHTS, systems.choice, batch=BATCH) for each in (Here(systems), pool)
    )
    assert one == over
    assert one[0].weight > 0
    test = ranking.Cases.of(histories, TEST)
    expected = ranking.evaluate(systems.scorer(OURS, WEIGHTS, one[0]), test, groups, batch=BATCH)
    assert_same(expected, shard_evaluate.rank(pool, OURS, WEIGHTS, test, groups, walk=one[0], batch=BATCH))
    alone = ranking.evaluate(systems.scorer(OURS, WEIGHTS), test, groups, batch=BATCH)
    assert_same(alone, shard_evaluate.rank(pool, ALONE, WEIGHTS, test, groups, walk=one[0], batch=BATCH))


def test_the_batches_of_a_killed_actor_are_done_again(pool, asked, tmp_path):
    load, histories, _ = asked
    cases, systems = ranking.Cases.of(histories, TEST), load()
    parts = [cases.batch(start, BATCH) for start in range(0, len(cases), BATCH)]
    expected = Here(systems).map(partial(Systems.rank, name=OURS, weights=WEIGHTS), parts)
    found = pool.map(partial(_rank_and_die_once, marker=str(tmp_path / "died")), parts)
    assert int((tmp_path / "died").read_text()) != os.getpid()
    for one, other in zip(expected, found, strict=True):
        assert all(np.array_equal(one[key].values, other[key].values) for key in one)


def _rank_and_die_once(systems: Systems, history, truth, marker: str) -> ranking.Ranks:
    """Ranks like any other; but whoever is first is killed outright, in the middle of the work."""
    try:
        with open(marker, "x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return systems.rank(history, truth, OURS, WEIGHTS)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    raise AssertionError("survived")


def test_what_goes_wrong_in_an_actor_is_told_in_one_line(pool, asked):
    parts = [ranking.Cases.of(asked[1], TEST).batch(0, 1)]
    with pytest.raises(DataError, match=r"^a score of user 3 is missing$"):
        pool.map(_refuse, parts)
    with pytest.raises(ConfigError, match=r"^evaluation failed: [^\n]*no such shape$"):
        pool.map(_fail, parts)


def _refuse(systems: Systems, history, truth) -> None:
    raise DataError("a score of user 3 is missing")


def _fail(systems: Systems, history, truth) -> None:
    raise RuntimeError("no such shape")


def test_a_whole_evaluation_over_actors_writes_what_one_process_wrote(session, qwen3_run, tmp_path):
    again = Run(tmp_path / "again")
    shutil.copytree(qwen3_run.root, again.root)
    names = ("weights.json", "metrics.json", "popularity_groups.json", "comparisons.json", "examples.json")
    for name in (*names, "per_user.parquet"):
        (again.root / name).unlink()
    sets = ["evaluation.actors=2", "cluster.threads=1"]
    evaluate.evaluate(again, load_config(again.config, sets))
    for name in names:
        assert again.read_json(name) == qwen3_run.read_json(name), name
    assert (again.root / "per_user.parquet").read_bytes() == (qwen3_run.root / "per_user.parquet").read_bytes()
    assert ray.is_initialized()
