"""What makes SASRec a stronger opponent: the sampled softmax, items with texts, and training within a time."""

import time

import numpy as np
import pytest
import torch

from setrec.data.catalog import TEST, TRAIN, VALID, Histories
from setrec.data.splits import leave_one_out
from setrec.evaluation import ranking
from setrec.models import sasrec
from setrec.ragged import Ragged
from setrec.training import sasrec_trainer
from setrec.training.sampled_softmax import Candidates

ITEMS, KINDS = 60, 6
SMALL = sasrec.SasRecSettings(width=16, max_items=8, epochs=3, targets_per_batch=256)


def kinds_of_items(users: int = 200, seed: int = 0) -> Histories:
    """Every user takes items of one kind (i mod 6); of each kind the tenth item is only ever the last of a history."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(users):
        chosen = rng.permutation(ITEMS // KINDS - 1)[:6]
        if user % 4 == 0:
            chosen[-1] = ITEMS // KINDS - 1
        rows.append(chosen * KINDS + rng.integers(KINDS))
    items = Ragged.of(rows)
    return Histories([str(u) for u in range(users)], items, leave_one_out(items.offsets))


@pytest.fixture(scope="module")
def histories() -> Histories:
    return kinds_of_items()


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    """Vectors that tell the kind of an item, and little else."""
    rng = np.random.default_rng(1)
    return (rng.normal(size=(KINDS, 12))[np.arange(ITEMS) % KINDS] + 0.1 * rng.normal(size=(ITEMS, 12))).astype("f4")


@pytest.fixture(scope="module")
def with_text(histories, text) -> sasrec.SasRec:
    settings = SMALL.model_copy(update={"epochs": 15, "id_dropout": 0.3, "dropout": 0.1})
    return sasrec_trainer.train_sasrec(histories, ITEMS, settings, features=text, seed=1)


def cold_recall(model: sasrec.SasRec, histories: Histories) -> float:
    """Recall@1 of the cold test items among all cold items."""
    groups = ranking.warm_cold_groups(histories.trained(ITEMS))
    return ranking.evaluate(sasrec.scorer(model), ranking.Cases.of(histories, TEST), groups, ks=(1,)).mean(
        "recall@1", "cold"
    )


def test_with_as_many_draws_as_items_the_loss_is_the_full_one(histories, text):
    batch = next(iter(sasrec_trainer.batches.one_pass(histories.upto(TRAIN), 8, 128, np.random.default_rng(0))))
    exact = SMALL.model_copy(update={"precision": "float32"})
    model = sasrec.SasRec(ITEMS, exact, sasrec.ItemText.standard(text)).eval()
    trained = torch.from_numpy(np.flatnonzero(histories.trained(ITEMS)))
    model.trained.copy_(torch.from_numpy(histories.trained(ITEMS)))
    full = sasrec_trainer.batch_loss(model, batch, None)
    sampled = sasrec_trainer.batch_loss(model, batch, Candidates(trained, torch.zeros(len(trained))))
    torch.testing.assert_close(sampled, full)
    for a, b in zip(
        torch.autograd.grad(sampled, list(model.parameters())),
        torch.autograd.grad(full, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_model_trained_with_as_many_draws_as_items_is_the_one_of_the_full_softmax(histories):
    every = SMALL.model_copy(update={"negatives": ITEMS, "precision": "float32"})
    history = histories.upto(TRAIN).take(np.arange(20))
    scores = [
        sasrec.scorer(sasrec_trainer.train_sasrec(histories, ITEMS, s, seed=2))(history)
        for s in (every, every.model_copy(update={"negatives": 0}))
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-2)


def test_a_sample_of_a_third_of_the_items_teaches_nearly_as_well(histories):
    def reached(negatives: int) -> float:
        settings = SMALL.model_copy(update={"epochs": 12, "negatives": negatives, "dropout": 0.1})
        model = sasrec_trainer.train_sasrec(histories, ITEMS, settings, seed=1)
        return ranking.mean_metric(sasrec.scorer(model), ranking.Cases.of(histories, VALID))

    assert reached(20) > 0.9 * reached(0)


@pytest.mark.parametrize("texts", [False, True])
def test_the_same_seed_gives_the_same_model_and_another_seed_another(histories, text, texts):
    settings = SMALL.model_copy(update={"epochs": 1, "negatives": 20, "id_dropout": 0.2, "text_dropout": 0.2})
    first, again, other = (
        sasrec_trainer.train_sasrec(
            histories, ITEMS, settings, seed=seed, features=text if texts else None
        ).state_dict()
        for seed in (5, 5, 6)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["items.weight"], other["items.weight"])


def test_a_cold_item_is_ranked_by_its_text(histories, with_text):
    assert cold_recall(with_text, histories) > 0.9
    history = histories.upto(TRAIN).take(np.arange(20))
    assert sasrec.scorer(with_text)(history).min() > -1e6, "no item stands below all others"


def test_without_texts_cold_items_are_a_guess(histories):
    model = sasrec_trainer.train_sasrec(histories, ITEMS, SMALL, seed=1)
    assert cold_recall(model, histories) < 0.5


def test_the_embedding_of_a_cold_item_has_no_say_in_its_vector(histories, text, with_text):
    cold = torch.from_numpy(np.flatnonzero(~histories.trained(ITEMS)))
    with torch.no_grad():
        before = with_text.vectors(cold)
        torch.testing.assert_close(before, with_text.text(cold))
    assert with_text.item_embeddings()[cold].abs().sum() == 0


def test_what_is_saved_with_texts_is_what_is_loaded(tmp_path, histories, with_text):
    with_text.save(tmp_path / "model")
    again, history = sasrec.SasRec.load(tmp_path / "model"), histories.upto(VALID).take(np.arange(20))
    assert again.settings == with_text.settings
    np.testing.assert_array_equal(sasrec.scorer(again)(history), sasrec.scorer(with_text)(history))


def test_the_files_of_a_plain_model_name_no_later_setting(tmp_path):
    sasrec.SasRec(ITEMS, SMALL).save(tmp_path / "plain")
    sasrec.SasRec(ITEMS, SMALL.model_copy(update={"negatives": 9})).save(tmp_path / "sampled")
    plain, sampled = ((tmp_path / name / "config.json").read_text() for name in ("plain", "sampled"))
    assert not any(name in plain for name in sasrec.LATER)
    assert '"negatives": 9' in sampled


def test_time_ends_training_after_a_first_part_and_never_before(histories):
    told: list[dict] = []
    settings = SMALL.model_copy(update={"epochs": 1000})
    model = sasrec_trainer.train_sasrec(histories, ITEMS, settings, report=told.append, seconds=0.0)
    assert len(told) == 1
    assert np.isfinite(sasrec.scorer(model)(histories.upto(TRAIN).take(np.arange(3)))).all()


def test_as_many_epochs_are_planned_as_the_time_is_enough_for(histories):
    told: list[dict] = []
    settings = SMALL.model_copy(update={"epochs": 1000, "patience": 1000})
    began = time.process_time()
    sasrec_trainer.train_sasrec(histories, ITEMS, settings, report=told.append, seconds=1.0)
    assert time.process_time() - began < 5
    assert 1 < len(told) < 1000
    assert told[-1]["epochs"] <= len(told) + 1


def test_another_validation_may_decide_which_epoch_is_best(histories):
    def trained(values: list[float]) -> torch.Tensor:
        left = iter(values)
        return sasrec_trainer.train_sasrec(histories, ITEMS, SMALL, seed=3, validate=lambda _: next(left)).items.weight

    first, second, again = trained([0.9, 0.3, 0.5]), trained([0.3, 0.9, 0.5]), trained([0.1, 0.2, 0.0])
    assert torch.equal(second, again)
    assert not torch.equal(first, second)
