"""Opponents as systems: what each reaches on circles, repeats, within its time, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest

from pipelines.benchmark.base import problem
from pipelines.benchmark.base.problem import Problem
from pipelines.benchmark.base.system import Clock, System
from pipelines.benchmark.opponents import transitions
from pipelines.benchmark.opponents.baselines import OPPONENTS, SasRecSystem
from pipelines.benchmark.opponents.setrec_system import WithoutModel
from setrec.errors import DataError
from setrec.evaluation import ranking
from setrec.models.settings import SasRecSettings
from setrec.scoring import baselines

ENTRANTS = (*OPPONENTS, WithoutModel())
BY_NAME = {system.name: system for system in ENTRANTS}
TRAINED = [name for name, system in BY_NAME.items() if system.random]
ALIKE = [pytest.param(name, marks=pytest.mark.slow) for name in TRAINED[1:]]
"""Those that train as the first does."""
QUICK = {"epochs": 30, "width": 16, "targets_per_batch": 128, "patience": 30, "negatives": 20}


@pytest.fixture(scope="module")
def given(prepared) -> Problem:
    return problem.load(prepared)


@pytest.fixture(autouse=True)
def small_grids(monkeypatch):
    """Searches over few settings."""
    monkeypatch.setattr(baselines, "GRID", {"neighbours": (50,), "shrink": (0.0, 3.0), "decay": (0.3, 0.8)})
    first = {name: values[:1] for name, values in transitions.GRID.items()}
    monkeypatch.setattr(transitions, "GRID", first | {"text": (0.0, 0.1)})


def fitted(system: System, given: Problem, seed: int = 0, minutes: float = math.inf):
    settings = {**system.grid[0], **QUICK} if system.random else system.grid[0]
    return system.fit(given, settings, seed, Clock(minutes))


def test_names_are_unique_and_what_a_seed_changes_has_six_settings_that_are_valid():
    assert len(BY_NAME) == len(ENTRANTS)
    for system in ENTRANTS:
        assert len(system.grid) == (6 if system.random else 1)
        if system.random:
            assert len({SasRecSettings(**settings).model_dump_json() for settings in system.grid}) == 6


@pytest.mark.parametrize("name", BY_NAME)
def test_every_opponent_scores_the_whole_catalogue_and_all_but_popularity_see_the_circle(given, name):
    found = fitted(BY_NAME[name], given)
    scores = found.scorer(given.test.history.take(np.arange(3)))
    assert scores.shape == (3, given.items)
    assert scores.dtype == np.float32
    reached = ranking.mean_metric(found.scorer, given.test)
    popular = ranking.mean_metric(baselines.Popularity(given.counts), given.test)
    assert reached == pytest.approx(popular) if name == "Popularity" else reached > 1.5 * popular


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in TRAINED[1:]] + ALIKE)
def test_the_same_seed_gives_the_same_scores_and_another_seed_others_where_chance_has_a_part(given, name):
    history = given.test.history.take(np.arange(5))
    first, again, other = (fitted(BY_NAME[name], given, seed).scorer(history) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) != BY_NAME[name].random


@pytest.mark.parametrize("name", TRAINED[:1] + ALIKE)
def test_the_curve_tells_every_epoch_and_the_best_one_is_returned(given, name):
    found = fitted(BY_NAME[name], given)
    assert [record["epoch"] for record in found.curve] == list(range(1, len(found.curve) + 1))
    best = max(found.curve, key=lambda record: record["ndcg@10"])
    assert found.chosen == {"epoch": best["epoch"]}
    assert ranking.mean_metric(found.scorer, given.valid) == pytest.approx(best["ndcg@10"])


@pytest.mark.parametrize("name", ["Transitions", *TRAINED])
def test_a_clock_that_is_over_ends_a_fit_that_can_still_score(given, name):
    told: list[float] = []
    clock = Clock(0.0, lambda share, note: told.append(share)) if name in TRAINED else Clock(0.0)
    clock.minutes = 1e-6
    settings = BY_NAME[name].grid[0]
    found = BY_NAME[name].fit(given, settings, 0, clock)
    assert len(found.curve) == (1 if name in TRAINED else 0)
    assert np.isfinite(found.scorer(given.test.history.take(np.arange(3)))).all()
    assert all(share == 1.0 for share in told)


def test_the_published_item_knn_has_all_neighbours_and_the_tuned_one_says_what_it_chose(given):
    published = fitted(BY_NAME["ItemKNN, as published"], given).scorer
    assert published.settings == baselines.ItemKnnSettings(neighbours=given.items, shrink=3.0, decay=0.8, last=50)
    tuned = fitted(BY_NAME["ItemKNN"], given).chosen
    assert tuned["neighbours"] == 50
    assert tuned["tried"] == 4


def test_without_texts_transitions_and_plain_sasrecs_do_and_the_one_with_texts_is_refused(given):
    mute = dataclasses.replace(given, text=None)
    for name in ("Transitions", "SASRec, sampled"):
        assert fitted(BY_NAME[name], mute).scorer(mute.test.history.take(np.arange(2))).shape == (2, given.items)
    with pytest.raises(DataError, match=r"SASRec \+ text needs texts"):
        fitted(BY_NAME["SASRec + text"], mute)


def test_texts_find_cold_items_that_a_plain_sasrec_cannot(given):
    groups = ranking.warm_cold_groups(given.trained)
    systems = (SasRecSystem("plain", {}, ()), SasRecSystem("text", {"id_dropout": 0.3}, (), text=True))
    found = [ranking.evaluate(fitted(one, given).scorer, given.test, groups, ks=(10,)) for one in systems]
    assert found[1].mean("ndcg@10", "all") > found[0].mean("ndcg@10", "all")


def test_the_components_without_a_model_tell_their_value_on_validation(given):
    found = fitted(WithoutModel(), given)
    assert found.valid > ranking.mean_metric(baselines.Popularity(given.counts), given.valid)
    assert found.chosen["weights"]["slots"] == {}
    assert {gain["name"] for gain in found.chosen["components"]} == set(found.chosen["weights"]["components"])
