"""A collaborative leg: the collaborative slot is read and answered apart, and the scores of both legs are summed."""

import numpy as np
import pytest
import torch
from small_models import small_model

from setrec.errors import ConfigError
from setrec.models.item_tokens import ItemFeatures
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import LegSettings
from setrec.ragged import Ragged
from setrec.scoring.model_scores import ModelScores
from setrec.training import losses
from setrec.training.batches import one_pass, per_prefix
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.trainer import Trainer
from setrec.training.warm_start import warm_start

HISTORIES = Ragged.of([[1, 2, 3], [4, 8], [5, 6, 7, 5, 9, 10]])


@pytest.fixture
def model(features, family) -> SetRecModel:
    return legs(features, family)


def legs(features: ItemFeatures, family: str = "qwen3", **changes) -> SetRecModel:
    given = {"dropout": 0.0, "history_skip": (0.0, 0.8), "repeat_bias": True} | changes
    return small_model(features, family, "fused", collaborative_leg=LegSettings(dropout=0.0), **given)


def gradients(model: SetRecModel, make=one_pass) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for batch in make(HISTORIES, 50, 1000, np.random.default_rng(0)):
        items, visible, targets = batch.tensors("cpu")
        terms = losses.batch_terms(model, items, visible, targets, ObjectiveSettings(), torch.arange(3))
        losses.total(terms, ObjectiveSettings(), 1.0).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_leg_learns_as_if_it_were_alone(model):
    """All that a leg learns from is independent of the other leg."""
    before = gradients(model)
    with torch.no_grad():
        model.tokens.table("collaborative").table.add_(1.0)
    after = gradients(model)
    of_leg = {name for name in before if model.leg_of(name)}
    assert {"leg.log_skip", "leg.repeat_logit", "leg.answer.weight", "tokens.parts.collaborative.table"} <= of_leg
    assert any(not torch.equal(before[name], after[name]) for name in of_leg)
    for name in before.keys() - of_leg:
        torch.testing.assert_close(before[name], after[name])


def test_each_leg_keeps_the_weights_of_its_own_best_epoch(features, tmp_path):
    """The second epoch is the best of the model's backbone, the first of the leg, and also after a checkpoint."""
    model, judged = legs(features), iter([(0.3, 0.1, 0.2), (0.2, 0.2, 0.1), (0.1, 0.1, 0.1)])
    settings = TrainingSettings(epochs=3, targets_per_batch=4, learning_rate=1e-2)
    kept = []
    for epoch in range(3):
        again = model if epoch == 0 else legs(features)
        trainer = Trainer(again, HISTORIES, lambda _: next(judged), settings, ObjectiveSettings())
        if epoch:
            trainer.load(tmp_path)
        trainer.epoch()
        kept.append({name: p.detach().clone() for name, p in trainer.parameters})
        trainer.save(tmp_path)
    assert (trainer.progress.best, trainer.progress.legs, trainer.progress.best_epoch) == (0.3, [0.2, 0.2], 2)
    best = trainer.restore_best()
    for name, parameter in best.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, kept[0 if model.leg_of(name) else 1][name]), name
    assert not torch.equal(kept[0]["leg.answer.weight"], kept[1]["leg.answer.weight"])
    best.save_pretrained(tmp_path / "model")
    assert SetRecModel.from_pretrained(tmp_path / "model").config.leg_epochs == [2, 1]


def test_each_leg_is_trained_for_as_many_epochs_as_it_is_told(features):
    model = legs(features)
    settings = TrainingSettings(epochs=4, targets_per_batch=4, learning_rate=1e-2)
    trainer, kept = Trainer(model, HISTORIES, None, settings, ObjectiveSettings(), stops=[3, 1]), []
    while not trainer.finished:
        trainer.epoch()
        kept.append({name: p.detach().clone() for name, p in trainer.parameters})
    assert len(kept) == 3
    for name, parameter in trainer.restore_best().named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, kept[0 if model.leg_of(name) else 2][name]), name


def test_a_leg_is_validated_by_the_scores_of_its_own_slots(model):
    term = ModelScores(model.eval(), dict.fromkeys(model.kinds, 1.0))
    each = term.by_kind(HISTORIES)
    own, leg = (term.of_kinds(HISTORIES, kinds) for kinds in model.legs)
    np.testing.assert_allclose(own, sum(each[kind] for kind in model.legs[0]), atol=1e-4)
    np.testing.assert_allclose(leg, each["collaborative"], atol=1e-5)


def test_one_pass_gives_the_gradients_of_one_sample_per_prefix(model):
    one, each = gradients(model), gradients(model, per_prefix)
    assert one.keys() == each.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, each[name], atol=2e-4, rtol=2e-3)


def test_the_backbone_reads_no_collaborative_code(model):
    codes = model.item_codes()
    changed = codes.clone()
    start, stop = model.code_columns["collaborative"]
    changed[:, start:stop] += 1.0
    torch.testing.assert_close(model.answers(HISTORIES, codes), model.answers(HISTORIES, changed))
    weights = dict.fromkeys(model.kinds, 1.0)
    own, other = (model.user_codes(HISTORIES, weights, table) for table in (codes, changed))
    torch.testing.assert_close(own[:, stop:], other[:, stop:])
    assert not torch.allclose(own[:, :stop], other[:, :stop])


def test_a_saved_model_has_its_leg(model, tmp_path):
    model.save_pretrained(tmp_path)
    again, weights = SetRecModel.from_pretrained(tmp_path).eval(), dict.fromkeys(model.kinds, 1.0)
    assert torch.equal(again.user_codes(HISTORIES, weights), model.user_codes(HISTORIES, weights))


def test_without_other_slots_there_is_one_backbone(features):
    alone = small_model(
        ItemFeatures(features.trained, features.collaborative, None), "qwen3", "fused", collaborative_leg=LegSettings()
    )
    assert alone.leg is None
    assert alone.tokens.read == alone.tokens.slots


def test_a_model_with_a_leg_is_no_start_for_one_without(features):
    with pytest.raises(ConfigError, match=r"has a collaborative leg .* none: see model\.collaborative_leg"):
        warm_start(legs(features), small_model(features, "qwen3", "fused"), np.arange(len(features)))
