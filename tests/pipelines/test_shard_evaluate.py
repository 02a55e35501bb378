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

from pipelines.common.cluster import ray_session
from pipelines.common.run_directory import Run
from pipelines.config.job import load_config
from pipelines.data import directory
from pipelines.evaluation import evaluate, shard_evaluate
from pipelines.evaluation.scorer import load_weights
from pipelines.evaluation.shard_evaluate import Here, Pool
from pipelines.evaluation.system_names import OURS
from pipelines.evaluation.systems import Systems
from setrec.data.catalog import TEST
from setrec.errors import ConfigError, DataError
from setrec.evaluation import ranking
from setrec.scoring import baselines

BATCH = 7


@pytest.fixture(scope="module")
def session():
    with ray_session(cpus=4):
        # This file is no module that a worker could import.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield


@pytest.fixture(scope="module")
def asked(qwen3_run):
    """What evaluation has to do on the run: how to load the systems, the histories, the groups."""
    catalog, histories = directory.load(qwen3_run.data)
    groups = ranking.warm_cold_groups(histories.trained(len(catalog)))
    counts = histories.train_counts(len(catalog))
    knn = baselines.ItemKnn(histories, len(catalog), baselines.ItemKnnSettings(neighbours=5))
    given = {"Popularity": baselines.Popularity(counts), "ItemKNN": knn}
    weights, config = load_weights(qwen3_run), load_config(qwen3_run.config)
    load = partial(Systems.load, qwen3_run.root.resolve(), config, given, groups, weights, weights)
    return load, histories, groups


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
        one = ranking.evaluate(systems.scorers[name], cases, groups, batch=BATCH)
        over = shard_evaluate.rank(pool, name, cases, groups, batch=BATCH, progress=lambda *done: told.append(done))
        assert_same(one, over)
        assert_same(one, shard_evaluate.rank(Here(systems), name, cases, groups, batch=BATCH))
    parts = -(-len(cases) // BATCH)
    assert told == [(done, parts) for done in range(1, parts + 1)] * len(systems.names)


@pytest.mark.slow
def test_the_batches_of_a_killed_actor_are_done_again(pool, asked, tmp_path):
    load, histories, _ = asked
    cases, systems = ranking.Cases.of(histories, TEST), load()
    parts = [cases.batch(start, BATCH) for start in range(0, len(cases), BATCH)]
    expected = Here(systems).map(partial(Systems.rank, name=OURS), parts)
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
        return systems.rank(history, truth, OURS)
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


@pytest.mark.slow
def test_a_whole_evaluation_over_actors_writes_what_one_process_wrote(session, qwen3_run, tmp_path):
    again = Run(tmp_path / "again")
    shutil.copytree(qwen3_run.root, again.root)
    names = ("scorer.json", "metrics.json", "popularity_groups.json", "comparisons.json", "examples.json")
    for name in (*names, "per_user.parquet"):
        (again.root / name).unlink()
    sets = ["evaluation.actors=2", "cluster.threads=1"]
    evaluate.evaluate(again, load_config(again.config, sets))
    for name in names:
        assert again.read_json(name) == qwen3_run.read_json(name), name
    assert (again.root / "per_user.parquet").read_bytes() == (qwen3_run.root / "per_user.parquet").read_bytes()
    assert ray.is_initialized()
