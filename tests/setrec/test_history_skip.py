"""Answers that carry the history's own codes, and the number that is added to the scores of items in the history."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import small_model

from setrec.models.grounding import LogitBias
from setrec.models.item_tokens import ItemFeatures
from setrec.models.setrec_model import SetRecModel
from setrec.models.settings import ModelSettings
from setrec.ragged import Ragged
from setrec.scoring.model_scores import ModelScores, model_scorer
from setrec.training import losses, softmax
from setrec.training.batches import one_pass, per_prefix
from setrec.training.sampled_softmax import Candidates, LogUniformSampler, sampled_cross_entropy
from setrec.training.settings import ObjectiveSettings
from setrec.training.softmax import catalogue_cross_entropy

ROWS, ITEMS, WIDTH = 24, 60, 8
HISTORIES = Ragged.of([[1, 2, 3], [4], [5, 6, 7, 5, 9, 10]])


@pytest.fixture
def model(features, family) -> SetRecModel:
    model = small_model(features, family, "fused", history_skip=(0.0, 0.5, 1.0), repeat_bias=True)
    with torch.no_grad():
        model.log_skip.normal_(std=0.1)
        model.repeat_logit.fill_(-0.1)
    return model


@pytest.fixture
def table() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, LogitBias, torch.Tensor]:
    """Users, codes, targets, and pairs that are raised, some of them targets, with the same as a table of logits."""
    torch.manual_seed(0)
    users, codes = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(ITEMS, WIDTH, requires_grad=True)
    targets, by = torch.randint(ITEMS, (ROWS,)), torch.tensor(-1.5, requires_grad=True)
    chosen = torch.rand(ROWS, ITEMS) < 0.1
    chosen[:5, targets[:5]], chosen[9] = True, False
    rows, items = chosen.nonzero(as_tuple=True)
    return users, codes, targets, LogitBias(rows, items, by), chosen * by


@pytest.mark.parametrize("at_once", [64, 1 << 20])
def test_raised_logits_are_the_full_softmax_of_the_table_with_them_added(table, monkeypatch, at_once):
    monkeypatch.setattr(softmax, "LOGITS_AT_ONCE", at_once)
    users, codes, targets, raised, added = table
    written = F.cross_entropy(users @ codes.T + added, targets, reduction="sum")
    _alike(catalogue_cross_entropy(users, codes, targets, [raised]), written, (users, codes, raised.by))


@pytest.mark.parametrize("at_once", [64, 1 << 20])
@pytest.mark.parametrize("samples", [30, ITEMS])
def test_raised_logits_in_a_sampled_softmax_are_the_formula_written_out(table, monkeypatch, at_once, samples):
    monkeypatch.setattr(softmax, "LOGITS_AT_ONCE", at_once)
    users, codes, targets, raised, added = table
    counts = np.random.default_rng(1).integers(0, 100, ITEMS)
    drawn = LogUniformSampler(counts, np.ones(ITEMS, bool), samples).draw(torch.Generator().manual_seed(4))
    logits = users @ codes.T + added
    corrected = (logits[:, drawn.rows] - drawn.log_counts).masked_fill(drawn.rows == targets[:, None], float("-inf"))
    own = logits[torch.arange(ROWS), targets]
    written = (torch.logsumexp(torch.cat([own[:, None], corrected], 1), 1) - own).sum()
    _alike(sampled_cross_entropy(users, codes, targets, drawn, [raised]), written, (users, codes, raised.by))


def _alike(ours: torch.Tensor, written: torch.Tensor, of: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(ours, written)
    for a, b in zip(torch.autograd.grad(2 * ours, of), torch.autograd.grad(2 * written, of), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampled", [False, True])
def test_one_pass_loss_and_gradients_equal_those_of_one_sample_per_prefix(model, sampled):
    settings, rng = ObjectiveSettings(alpha=0.0), np.random.default_rng(0)
    trained = np.flatnonzero(model.trained.numpy())
    histories = Ragged.of([rng.choice(trained, n) for n in (2, 5, 7, 3)])
    histories.values[3] = histories.values[2]  # somebody comes back
    drawn = Candidates(torch.from_numpy(trained[::2]), torch.zeros(len(trained[::2]))) if sampled else None

    def gradients(epoch):
        model.zero_grad()
        value, count = 0.0, sum(b.count for b in epoch)
        for batch in epoch:
            given = (torch.from_numpy(x) for x in (batch.items, batch.visible, batch.targets))
            terms = losses.batch_terms(model, *given, settings, torch.arange(3), drawn)
            value = value + losses.total(terms, settings, count)
        value.backward()
        return float(value.detach()), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    loss_a, a = gradients(one_pass(histories, 10, 1000, rng))
    loss_b, b = gradients(list(per_prefix(histories, 10, 4, rng)))
    assert loss_a == pytest.approx(loss_b, rel=1e-5)
    assert {"log_skip", "repeat_logit"} <= a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=2e-3, msg=name)
    assert all(a[name].abs().max() > 1e-4 for name in ("log_skip", "repeat_logit"))


def test_scores_are_what_the_loss_is_taken_of(model):
    """-log softmax of the scores at equal weights is the fused loss, the items that were seen included."""
    alike = dict.fromkeys(model.kinds, 1 / len(model.tokens.slots))
    scores = torch.from_numpy(model_scorer(model, alike)(HISTORIES))
    targets = torch.tensor([[3], [4], [12]])
    items, lengths = HISTORIES.pad(10)
    terms = losses.batch_terms(
        model, torch.from_numpy(items), torch.from_numpy(lengths)[:, None], targets,
        ObjectiveSettings(slots=0.0, alpha=0.0, negatives="all"), torch.arange(3),
    )  # fmt: skip
    written = F.cross_entropy(scores, targets[:, 0], reduction="sum")
    torch.testing.assert_close(terms["fused"], written, atol=1e-4, rtol=1e-5)


def test_the_kinds_scores_add_up_at_any_weights(model):
    weights = {"collaborative": 0.3, "semantic": 0.5, "structural": 0.2}
    kinds = ModelScores(model, dict.fromkeys(model.kinds, 1.0)).by_kind(HISTORIES)
    together = sum(weight * kinds[kind] for kind, weight in weights.items())
    np.testing.assert_allclose(model_scorer(model, weights)(HISTORIES), together, atol=1e-4)


def test_a_batch_answers_as_each_user_alone_and_from_the_codes_of_what_is_read(model):
    weights = dict.fromkeys(model.kinds, 1.0)
    together = model.user_codes(HISTORIES, weights)
    for row in range(3):
        alone = HISTORIES.take(np.array([row]))
        rows, place = np.unique(alone.values, return_inverse=True)
        read = Ragged(place.astype(np.int32), alone.offsets)
        few = model.user_codes(read, weights, model.item_codes()[torch.from_numpy(rows).long()])
        torch.testing.assert_close(few[0], together[row], atol=1e-5, rtol=1e-4)


def test_it_is_kept_with_the_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    again, weights = SetRecModel.from_pretrained(tmp_path).eval(), dict.fromkeys(model.kinds, 1.0)
    torch.testing.assert_close(again.user_codes(HISTORIES, weights), model.user_codes(HISTORIES, weights))
    assert again.repeat_bias(weights) == model.repeat_bias(weights) < 0


def test_texts_without_layers_rank_by_their_cosine_to_the_history_where_the_backbone_says_nothing(features):
    text = features.text.copy()
    text[7] = 0.0
    given = ItemFeatures(features.trained, None, text)
    model = SetRecModel.build(
        ModelSettings(semantic_tokens=1, hidden=(), text_slot=0, history_skip=(0.5,)), given
    ).eval()
    with torch.no_grad():
        model.log_scale.fill_(-100.0)
    unit = text - text.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit[7] = 0.0
    cosines = (unit[2] * 0.5 + unit[3]) / 1.5 @ unit.T
    scores = model_scorer(model, {"semantic": 1.0})(Ragged.of([[2, 3]]))[0]
    np.testing.assert_allclose(scores, 30 * cosines, atol=1e-4)
    new = model.text_codes(torch.from_numpy(text[[7, 9]])).numpy()
    np.testing.assert_allclose(new, model.item_codes().numpy()[[7, 9]], atol=1e-5)
