"""``ask: item``: the last item's own token answers, without queries."""

import numpy as np
import pytest
import torch
from small_models import ITEMS, small_model

from setrec.errors import ConfigError
from setrec.models.setrec_model import SetRecModel
from setrec.ragged import Ragged
from setrec.scoring.model_scores import model_scorer
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.trainer import Trainer


@pytest.fixture
def model(features) -> SetRecModel:
    return small_model(features, "qwen3", "fused", max_items=8, query_mode="item", dropout=0.0)


@torch.no_grad()
def test_every_position_answers_as_if_the_history_ended_there(model):
    row, padding = [3, 1, 4, 11, 5], [9, 2, 6]
    together = model.outputs(torch.tensor([row + padding]), torch.tensor([[1, 2, 3, 4, 5]]))[0]
    for seen in range(1, 6):
        alone = model.outputs(torch.tensor([row[:seen]]), torch.tensor([[seen]]))[0, 0]
        torch.testing.assert_close(together[seen - 1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_nothing_in_sight_the_instruction_answers(model):
    answers = [model.outputs(torch.tensor([[item]]), torch.tensor([[0]])) for item in (1, 2)]
    assert torch.isfinite(answers[0]).all()
    torch.testing.assert_close(*answers)


@torch.no_grad()
def test_slots_answer_through_maps_of_their_own(model):
    before = model.outputs(torch.tensor([[1, 2]]), torch.tensor([[2]]))
    model.maps[1] += torch.randn_like(model.maps[1])
    changed = (model.outputs(torch.tensor([[1, 2]]), torch.tensor([[2]])) != before).any(dim=-1)[0, 0]
    assert changed.tolist() == [at == 1 for at in range(len(model.tokens.slots))]


@pytest.mark.parametrize(("family", "history"), [("t5", "fused"), ("qwen3", "set")])
def test_where_no_single_token_stands_for_the_last_item_it_is_refused(features, family, history):
    with pytest.raises(ConfigError, match="query_mode: item"):
        small_model(features, family, history, query_mode="item")


def test_it_learns_and_comes_back_from_disk(features, model, tmp_path):
    rng = np.random.default_rng(0)
    ring = np.array([i for i in range(ITEMS) if i % 10 != 9])
    rows = Ragged.of([ring[(s + np.arange(9)) % len(ring)] for s in rng.integers(0, len(ring), 60)])
    settings = TrainingSettings(epochs=30, patience=30, targets_per_batch=64, learning_rate=5e-3, precision="float32")
    trainer = Trainer(model, rows, lambda _: [0.0], settings, ObjectiveSettings())
    assert trainer.model.tokens_per_target == 0
    losses = [trainer.epoch()["loss"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    model.eval().save_pretrained(tmp_path)
    weights, asked = dict.fromkeys(model.kinds, 1.0), Ragged.of([ring[:3], ring[5:9]])
    scores = model_scorer(model, weights)(asked)
    assert np.argmax(scores, axis=1).tolist() == [ring[3], ring[9]]
    again = model_scorer(SetRecModel.from_pretrained(tmp_path), weights)(asked)
    np.testing.assert_allclose(again, scores, rtol=1e-5, atol=1e-5)
