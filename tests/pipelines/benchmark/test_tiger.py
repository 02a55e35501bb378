"""TIGER: the search finds what exact ranking finds, one pass trains what prefixes train, and a pattern is learned."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipelines.benchmark.base.problem import Problem
from pipelines.benchmark.base.system import Clock
from pipelines.benchmark.opponents.code_beam import Forest, beam_search, catalogue_scores
from pipelines.benchmark.opponents.code_t5 import CodeT5, CodeT5Settings
from pipelines.benchmark.opponents.code_writer import CachedWriter
from pipelines.benchmark.opponents.residual_codes import residual_codes
from pipelines.benchmark.opponents.tiger import Tiger, TigerSettings
from setrec.data.catalog import Catalog, Histories
from setrec.data.splits import leave_one_out
from setrec.errors import ConfigError
from setrec.evaluation import ranking
from setrec.ragged import Ragged
from setrec.scoring.baselines import Popularity
from setrec.training import batches

ITEMS, SEEN = 60, 54
TINY = {"width": 32, "heads": 2, "head_width": 16, "hidden": 64, "layers": 1, "targets_per_batch": 128}
QUICK = TINY | {"dropout": 0.0, "learning_rate": 1e-2, "warmup_steps": 10, "epochs": 25}


def problem(users: int = 150) -> Problem:
    """Item i is followed by item i + 1, around a circle; the last items of the catalogue occur nowhere."""
    rng = np.random.default_rng(0)
    rows = [(rng.integers(SEEN) + np.arange(rng.integers(5, 12))) % SEEN for _ in range(users)]
    items = Ragged.of(rows)
    ids = [str(i) for i in range(ITEMS)]
    text = rng.normal(size=(ITEMS, 8)).astype(np.float32)
    histories = Histories([str(u) for u in range(users)], items, leave_one_out(items.offsets))
    return Problem("circle", "leave-one-out", Catalog(ids, ids, ids, {}), histories, text, "")


@pytest.fixture(scope="module")
def circle() -> Problem:
    return problem()


@pytest.fixture(scope="module")
def codes(circle) -> np.ndarray:
    return residual_codes(circle.text)


@pytest.fixture(params=["causal", "both"])
def model(request, codes) -> CodeT5:
    """A model in evaluation mode at random weights."""
    torch.manual_seed(3)
    return CodeT5(codes, CodeT5Settings(sight=request.param, layers=2)).eval()


@pytest.fixture(scope="module")
def histories() -> Ragged:
    rng = np.random.default_rng(1)
    return Ragged.of([rng.integers(0, ITEMS, n) for n in (3, 1, 20, 7)])


def exact(model: CodeT5, history: Ragged) -> np.ndarray:
    """Log-probabilities (b, I) of all items, each written in full by transformers' own decoder, a user at a time."""
    found = []
    with torch.inference_mode():
        for row in history:
            items, every = torch.from_numpy(row).long().expand(ITEMS, -1), torch.arange(ITEMS)[:, None]
            hidden = model(items, torch.full((ITEMS, 1), len(row)), every)[:, 0]
            levels = [model.logits(hidden[:, at], at).log_softmax(dim=1) for at in range(model.levels)]
            found.append(sum(level[torch.arange(ITEMS), model.codes[:, at]] for at, level in enumerate(levels)))
    return torch.stack(found).numpy()


@torch.inference_mode()
def searched(model: CodeT5, history: Ragged, part: np.ndarray, width: int) -> np.ndarray:
    items, lengths = (torch.from_numpy(x).long() for x in history.pad(20))
    found = beam_search(CachedWriter(model, items, lengths), Forest.of(model.codes.numpy(), part), width)
    return catalogue_scores(*found, ITEMS).numpy()


def test_a_search_as_wide_as_the_catalogue_gives_the_log_probability_of_every_item(model, histories):
    np.testing.assert_allclose(
        searched(model, histories, np.arange(ITEMS) % 4 == 0, ITEMS), exact(model, histories), atol=1e-4
    )


def test_a_narrow_search_finds_only_items_and_gives_them_their_log_probability(model, histories):
    part, truth = np.arange(ITEMS) >= SEEN, exact(model, histories)
    scores = searched(model, histories, part, 5)
    found = np.isfinite(scores)
    assert not np.isnan(scores).any()
    assert (found[:, ~part].sum(axis=1) == 5).all()
    assert (found[:, part].sum(axis=1) == 5).all()
    np.testing.assert_allclose(scores[found], truth[found], atol=1e-4)


def test_beams_that_run_out_of_items_find_nothing_twice_and_overwrite_nothing(model, histories):
    """A part of a single item, which is row 0, beside a search far wider than it."""
    scores = searched(model, histories, np.arange(ITEMS) == 0, 30)
    np.testing.assert_allclose(scores[:, 0], exact(model, histories)[:, 0], atol=1e-4)
    assert (np.isfinite(scores[:, 1:]).sum(axis=1) == 30).all()


def test_the_forest_holds_every_item_once_under_its_part(codes):
    part = np.arange(ITEMS) % 3
    forest = Forest.of(codes, part)
    assert forest.roots == 3
    assert sorted(forest.items.tolist()) == list(range(ITEMS))
    assert (np.diff(part[forest.items.numpy()]) >= 0).all()


def test_all_targets_of_a_user_in_one_pass_lose_what_they_lose_prefix_by_prefix(codes):
    torch.manual_seed(3)
    model, rng = CodeT5(codes, CodeT5Settings()).eval(), np.random.default_rng(2)
    rows = Ragged.of([rng.integers(0, ITEMS, n) for n in (2, 5, 9, 14)])
    plans = batches.one_pass(rows, 20, 16, rng), batches.per_prefix(rows, 20, 16, rng)
    with torch.inference_mode():
        together, apart = (float(sum(model.loss(batch) for batch in plan)) for plan in plans)
    assert together == pytest.approx(apart, rel=1e-5)


def test_an_item_in_the_encoder_sees_later_ones_only_where_it_should(model):
    items = torch.arange(6)[None]
    changed = torch.tensor([[0, 1, 2, 3, 4, 50]])
    with torch.inference_mode():
        a, b = (model.encode(x, torch.full((1, 1), 6)).unflatten(1, (6, -1))[:, :5] for x in (items, changed))
    assert torch.allclose(a, b, atol=1e-6) == (model.settings.sight == "causal")


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"sight": "both"}, marks=pytest.mark.slow)], ids=["causal", "both"]
)
def test_a_circle_is_learned_and_beats_popularity(circle, changes):
    fitted = Tiger().fit(circle, QUICK | {"beams": 20} | changes, 0, Clock(5))
    groups = ranking.warm_cold_groups(circle.trained)
    found = ranking.evaluate(fitted.scorer, circle.test, groups)
    popular = ranking.evaluate(Popularity(circle.counts), circle.test, groups)
    assert found.mean() > 0.8 > popular.mean() + 0.5
    assert max(record["ndcg@10"] for record in fitted.curve) == fitted.curve[fitted.chosen["epoch"] - 1]["ndcg@10"]
    assert [record["epoch"] for record in fitted.curve] == list(range(1, len(fitted.curve) + 1))
    scores = fitted.scorer(circle.test.history)
    assert scores.shape == (len(circle.test), ITEMS)
    assert scores.dtype == np.float32
    assert np.isfinite(scores[:, ~circle.trained]).all()  # six cold items, all within the beams


def test_the_same_seed_gives_the_same_scores_and_another_seed_others(circle):
    a, b, c = (
        Tiger().fit(circle, TINY | {"epochs": 1}, seed, Clock(5)).scorer(circle.test.history) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_it_stops_in_time_and_still_answers(circle):
    began = time.process_time()
    fitted = Tiger().fit(circle, TINY | {"epochs": 10_000, "patience": 10_000}, 0, Clock(0.05))
    assert time.process_time() - began < 10
    assert fitted.curve[-1]["seconds"] < 6
    assert not np.isnan(fitted.scorer(circle.test.history)).any()


def test_without_any_time_it_takes_one_step(circle):
    fitted = Tiger().fit(circle, TINY, 0, Clock(1e-6))
    assert len(fitted.curve) == 1
    assert np.isfinite(fitted.curve[0]["loss"])


def test_it_stops_when_validation_no_longer_improves(circle):
    fitted = Tiger().fit(circle, TINY | {"learning_rate": 0.0, "patience": 2}, 0, Clock(5))
    assert len(fitted.curve) == 3


def test_without_texts_it_says_what_is_missing_in_one_line(circle):
    with pytest.raises(ConfigError, match="texts") as refused:
        Tiger().fit(dataclasses.replace(circle, text=None), {}, 0, Clock(1))
    assert "\n" not in str(refused.value)


def test_the_grid_has_six_settings_the_default_first_and_unknown_ones_are_refused():
    assert Tiger.name == "TIGER"
    assert Tiger.random
    assert len({TigerSettings.model_validate(dict(settings)).model_dump_json() for settings in Tiger.grid}) == 6
    assert Tiger.grid[0] == {}
    with pytest.raises(ValidationError):
        TigerSettings.model_validate({"depth": 3})
