"""SASRec: causality, padding, the marking of untrained items, and the quality it must reach on a known process."""

import math

import numpy as np
import pytest
import torch

from setrec.data.catalog import TEST, TRAIN, VALID, Histories
from setrec.data.splits import leave_one_out
from setrec.errors import ConfigError
from setrec.evaluation import ranking
from setrec.models import sasrec
from setrec.models.settings import SasRecSettings
from setrec.ragged import Ragged
from setrec.scoring import baselines
from setrec.training import sasrec_trainer

ITEMS = 40
UNTRAINED = (38, 39)
FAITHFUL = 0.8
SMALL = sasrec.SasRecSettings(width=16, max_items=8, epochs=3, targets_per_batch=256)


def markov(users: int = 300, seed: int = 0) -> Histories:
    """A process whose best answer is known: item i is followed by 7i + 3 with probability ``FAITHFUL``, else by any.

    The two last items of the catalogue never occur in training; one user is asked for one of them.
    """
    rng, rows = np.random.default_rng(seed), []
    seen = ITEMS - len(UNTRAINED)
    for _ in range(users):
        row = [int(rng.integers(seen))]
        while len(row) < 14:
            row.append((7 * row[-1] + 3) % seen if rng.random() < FAITHFUL else int(rng.integers(seen)))
        rows.append(row)
    rows[0][-1] = UNTRAINED[0]
    items = Ragged.of(rows)
    return Histories([str(u) for u in range(users)], items, leave_one_out(items.offsets))


@pytest.fixture(scope="module")
def histories() -> Histories:
    return markov()


@pytest.fixture(scope="module")
def trained(histories) -> tuple[sasrec.SasRec, list[dict]]:
    """A model and what it reported, trained long enough to overfit a little."""
    told: list[dict] = []
    settings = sasrec.SasRecSettings(width=32, max_items=8, epochs=12, targets_per_batch=256, dropout=0.1)
    return sasrec_trainer.train_sasrec(histories, ITEMS, settings, report=told.append, seed=1), told


def test_on_a_markov_chain_it_comes_close_to_the_best_possible_and_popularity_does_not(histories, trained):
    cases = ranking.Cases.of(histories, TEST)
    groups = ranking.warm_cold_groups(histories.trained(ITEMS))
    reached = ranking.evaluate(sasrec.scorer(trained[0]), cases, groups).mean("mrr@5", "warm", "kept")
    assert 0.9 * FAITHFUL < reached < FAITHFUL + 0.1
    popular = baselines.Popularity(histories.train_counts(ITEMS))
    assert ranking.evaluate(popular, cases, groups).mean("mrr@5", "warm", "kept") < 0.2


def test_the_epoch_that_was_best_on_validation_is_returned(histories, trained):
    model, told = trained
    assert [record["epoch"] for record in told] == list(range(1, len(told) + 1))
    assert all(record["epochs"] == 12 and record["seconds"] >= 0 for record in told)
    assert told[-1]["loss"] < told[0]["loss"]
    cases = ranking.Cases.of(histories, VALID)
    best = max(record["ndcg@10"] for record in told)
    assert ranking.mean_metric(sasrec.scorer(model), cases) == pytest.approx(best)


def test_training_stops_when_validation_no_longer_improves(histories):
    told: list[dict] = []
    patient = SMALL.model_copy(update={"learning_rate": 0.0, "epochs": 20, "patience": 2})
    sasrec_trainer.train_sasrec(histories, ITEMS, patient, report=told.append)
    assert len(told) == 3


def test_items_never_trained_on_are_marked_and_stand_below_all_others(histories, trained):
    model = trained[0]
    embeddings = model.item_embeddings()
    assert embeddings.shape == (ITEMS, 32)
    untrained = embeddings.abs().sum(dim=1) == 0
    assert untrained.nonzero().ravel().tolist() == list(UNTRAINED)
    scores = sasrec.scorer(model)(histories.upto(TRAIN).take(np.arange(20)))
    assert (scores[:, UNTRAINED].max(axis=1) < np.delete(scores, UNTRAINED, axis=1).min(axis=1)).all()


def test_items_never_trained_on_get_no_gradient(histories):
    start = torch.manual_seed(3) and sasrec.SasRec(ITEMS, SMALL).items.weight[list(UNTRAINED)]
    still = SMALL.model_copy(update={"weight_decay": 0.0})
    model = sasrec_trainer.train_sasrec(histories, ITEMS, still, seed=3)
    torch.testing.assert_close(model.items.weight[list(UNTRAINED)], start)


def test_the_future_never_reaches_an_earlier_position(trained):
    model, rng = trained[0], np.random.default_rng(2)
    items = torch.from_numpy(rng.integers(0, ITEMS, (4, 8)))
    changed = items.clone()
    changed[:, 5:] = torch.from_numpy(rng.integers(0, ITEMS, (4, 3)))
    with torch.no_grad():
        torch.testing.assert_close(model(items)[:, :5], model(changed)[:, :5])
        assert not torch.allclose(model(items)[:, 5:], model(changed)[:, 5:], atol=1e-3)


def test_a_batch_scores_as_its_users_one_by_one(histories, trained):
    history = Ragged.of([row[: 1 + n % 12] for n, row in enumerate(histories.upto(TRAIN).take(np.arange(24)))])
    score = sasrec.scorer(trained[0])
    alone = np.concatenate([score(Ragged.of([row])) for row in history])
    np.testing.assert_allclose(score(history), alone, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 2])
def test_vectors_of_some_positions_are_those_of_all_positions(layers):
    torch.manual_seed(0)
    model = sasrec.SasRec(30, SasRecSettings(layers=layers, width=16, heads=2, max_items=8)).eval()
    items, last = torch.randint(0, 30, (5, 8)), torch.tensor([0, 3, 7, 2, 5])
    torch.testing.assert_close(model(items, last)[:, 0], model(items)[torch.arange(5), last])


def test_only_the_last_items_of_a_long_history_count(trained):
    score, rng = sasrec.scorer(trained[0]), np.random.default_rng(4)
    long = rng.integers(0, ITEMS, 30)
    np.testing.assert_allclose(score(Ragged.of([long])), score(Ragged.of([long[-8:]])), atol=1e-5)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(histories):
    a, b, c = (sasrec_trainer.train_sasrec(histories, ITEMS, SMALL, seed=seed).item_embeddings() for seed in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


def test_held_out_items_do_not_change_what_is_learned(histories):
    """With validation out of the way (one epoch), other test and validation items give the same weights."""
    once = SMALL.model_copy(update={"epochs": 1})
    other = histories.items.values.copy()
    other[histories.splits != TRAIN] = np.random.default_rng(7).integers(
        0, ITEMS - 2, (histories.splits != TRAIN).sum()
    )
    changed = Histories(histories.user_ids, Ragged(other, histories.items.offsets), histories.splits)
    models = [sasrec_trainer.train_sasrec(h, ITEMS, once).state_dict() for h in (histories, changed)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_without_validation_items_it_trains_to_the_end(histories):
    rows = histories.upto(TRAIN)
    told: list[dict] = []
    train_only = Histories(histories.user_ids, rows, np.zeros(len(rows.values), np.int8))
    model = sasrec_trainer.train_sasrec(train_only, ITEMS, SMALL, report=told.append)
    assert len(told) == SMALL.epochs
    assert all(math.isnan(record["ndcg@10"]) for record in told)
    assert np.isfinite(sasrec.scorer(model)(rows.take(np.arange(3)))).all()


def test_what_is_saved_is_what_is_loaded(tmp_path, histories, trained):
    trained[0].save(tmp_path / "sasrec")
    again, history = sasrec.SasRec.load(tmp_path / "sasrec"), histories.upto(TRAIN)
    assert again.settings == trained[0].settings
    np.testing.assert_array_equal(sasrec.scorer(again)(history), sasrec.scorer(trained[0])(history))
    assert torch.equal(again.item_embeddings(), trained[0].item_embeddings())


@pytest.mark.parametrize("damage", ["missing", "truncated", "other shape", "unknown setting", "other weights"])
def test_a_folder_that_holds_no_such_model_is_refused_in_one_line(tmp_path, trained, damage):
    folder = tmp_path / "sasrec"
    trained[0].save(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "other shape":
        config.write_text(config.read_text().replace('"layers": 2', '"layers": 3'))
    elif damage == "unknown setting":
        config.write_text(config.read_text().replace('"layers"', '"depth"'))
    else:
        sasrec.save_file({"a": torch.zeros(2)}, weights)
    with pytest.raises(ConfigError, match="holds no SASRec") as refused:
        sasrec.SasRec.load(folder)
    assert "\n" not in str(refused.value)
