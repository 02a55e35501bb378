"""Fine-tuning of a sentence encoder: what learns, what stays, and what the vectors are."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from small_models import WORDS, tiny_bert
from transformers import T5Config, T5Model

from setrec.data.catalog import TEST, TRAIN, VALID, Histories
from setrec.errors import ConfigError
from setrec.ragged import Ragged
from setrec.text.encoder import TextEncoder
from setrec.text.upper_layers import UpperLayers
from setrec.training.encoder.tuning import _TowerSteps, fine_tune
from setrec.training.encoder.two_towers import TwoTowers
from setrec.training.settings import EncoderTuningSettings

TEXTS = [f"{first} {a} {b}" for first in WORDS[:6] for a in WORDS[6:] for b in WORDS[6:]]
SETTINGS = EncoderTuningSettings(epochs=4, users=16, learning_rate=1e-2, latest=1, drift_penalty=0.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


def in_pairs(users=150, seed=0) -> Histories:
    """Users who go to and fro between two first words, of which no text has both; six items each."""
    rng = np.random.default_rng(seed)
    rows = [
        np.stack([rng.permutation(16)[:3] + 16 * first, rng.permutation(16)[:3] + 16 * (first ^ 1)], axis=1).ravel()
        for first in rng.integers(6, size=users)
    ]
    splits = np.tile(np.array([TRAIN] * 4 + [VALID, TEST], np.int8), users)
    return Histories([str(user) for user in range(users)], Ragged.of(rows), splits)


def tuned(tiny, folder, histories=None, settings=SETTINGS):
    """The record of a tuning and its towers; the encoder is saved in ``folder``."""
    folder.mkdir()
    towers = TwoTowers(UpperLayers(TextEncoder(tiny, device="cpu"), 1, TEXTS, folder / "states"), 1, 0.05)
    record = fine_tune(towers, histories or in_pairs(), settings)
    vectors = towers.items.vectors()
    towers.items.save(folder / "encoder")
    return record, vectors


@pytest.fixture(scope="module")
def once(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "once"
    return *tuned(tiny, folder), folder / "encoder"


def test_recall_rises_where_words_of_the_text_predict_the_next_item(once):
    record, _, _ = once
    assert record["before"]["recall@10"] < 0.1
    assert record["after"]["recall@10"] > 0.25
    assert record["after"] == {k: record["epochs"][record["best_epoch"] - 1][k] for k in ("recall@10", "ndcg@10")}


def test_lower_layers_are_the_same_bit_for_bit_and_upper_ones_are_not(once, tiny):
    before, after = load_file(tiny / "model.safetensors"), load_file(once[2] / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("encoder.layer.1.") for name in changed)


def test_the_saved_encoder_gives_the_vectors_that_were_trained(once):
    found = TextEncoder(once[2], device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, once[1], atol=5e-3)
    assert np.abs(found - once[1]).mean() < 5e-4


def test_the_same_seed_gives_the_same_vectors_whatever_was_held_out_for_test(once, tiny, tmp_path):
    histories = in_pairs()
    histories.items.values[histories.splits == TEST] = 7
    _, again = tuned(tiny, tmp_path / "again", histories)
    assert np.array_equal(again, once[1])
    _, other = tuned(tiny, tmp_path / "other", settings=SETTINGS.model_copy(update={"seed": 1, "epochs": 1}))
    assert not np.array_equal(other, once[1])


def test_an_encoder_that_does_not_improve_stays_as_it_was(tiny, tmp_path):
    vectors = TextEncoder(tiny, device="cpu").encode(TEXTS)
    nearest = (vectors @ vectors.T - 2 * np.eye(len(TEXTS))).argmax(axis=1)
    last = np.random.default_rng(0).permutation(len(TEXTS))[:40]
    rows = [[(row + 50) % len(TEXTS), row, nearest[row]] for row in last if nearest[row] != (row + 50) % len(TEXTS)]
    splits = np.tile(np.array([TRAIN, TRAIN, VALID], np.int8), len(rows))
    histories = Histories([str(user) for user in range(len(rows))], Ragged.of(rows), splits)
    record, _ = tuned(tiny, tmp_path / "perfect", histories)
    assert record["before"]["recall@10"] == 1
    assert record["best_epoch"] == 0
    assert record["before"] == record["after"]
    before, after = (load_file(p / "model.safetensors") for p in (tiny, tmp_path / "perfect" / "encoder"))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["mean", "cls and a dense layer"])
def test_stored_states_give_the_vectors_of_the_whole_encoder(tiny, tmp_path, kind):
    torch.manual_seed(0)
    path = tmp_path / "encoder"
    if kind == "cls and a dense layer":
        parts = [Transformer(str(tiny)), Pooling(16, pooling_mode="cls"), Dense(16, 8)]
        SentenceTransformer(modules=parts, device="cpu").save(str(path))
    else:
        shutil.copytree(tiny, path)
    texts = [*TEXTS[:20], "", TEXTS[0], "drama " * 40]
    items = UpperLayers(TextEncoder(path, batch_size=5, device="cpu"), 1, texts, tmp_path / "states")
    expected = TextEncoder(path, device="cpu").encode(texts)
    np.testing.assert_allclose(items.vectors()[items.text_of], expected, atol=5e-3)
    assert len(items.original) == 22
    items.save(tmp_path / "saved")
    np.testing.assert_allclose(TextEncoder(tmp_path / "saved", device="cpu").encode(texts), expected, atol=1e-6)


def test_hard_negatives_are_near_and_never_of_the_users_own_history(tiny, tmp_path):
    items = UpperLayers(TextEncoder(tiny, device="cpu"), 1, TEXTS, tmp_path / "states")
    settings = SETTINGS.model_copy(update={"hard_negatives": 1.0, "users": 1, "positions": 2})
    histories = in_pairs()
    own, met = histories.upto(TRAIN), 0
    for step in _TowerSteps(TwoTowers(items, 1, 0.05), histories, settings).epoch(np.random.default_rng(0)):
        assert len(step.own) == 1
        assert not set(step.negatives) & set(step.own.values)
        assert len(step.targets) <= 2
        assert set(step.negatives) <= set(own.values)
        met += len(step.negatives)
    assert met > 100


def test_a_users_own_items_are_no_negatives(tiny, tmp_path):
    items = UpperLayers(TextEncoder(tiny, device="cpu"), 1, TEXTS, tmp_path / "states")
    towers = TwoTowers(items, 1, 0.05)
    alone = EncoderTuningSettings(users=1, hard_negatives=0.0)
    step = next(_TowerSteps(towers, in_pairs(), alone).epoch(np.random.default_rng(0)))
    texts = np.unique(np.concatenate([step.read[step.read >= 0], step.targets]))
    assert towers.loss(step, items(texts), texts).item() == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_fine_tuned_is_refused_in_one_line(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "t5")
    T5Model(T5Config(vocab_size=14, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    for path, layers, reason in ((tiny, 3, "has 2 layers"), (tmp_path / "t5", 1, "cannot be fine-tuned")):
        with pytest.raises(ConfigError, match=reason) as caught:
            UpperLayers(TextEncoder(path, device="cpu"), layers, TEXTS, tmp_path / "states")
        assert "\n" not in str(caught.value)
