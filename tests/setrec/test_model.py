import numpy as np
import pytest
import torch
from small_models import small_model

from setrec.errors import ConfigError
from setrec.models import grounding
from setrec.models.setrec_model import Answers, SetRecModel
from setrec.models.settings import BackboneSettings, LoraSettings, ModelSettings
from setrec.ragged import Ragged
from setrec.training import losses
from setrec.training.batches import one_pass, per_prefix
from setrec.training.settings import ObjectiveSettings

CLOSE = {"atol": 1e-5, "rtol": 0.0}


def run(model, items, visible, vectors=None, queries=None):
    """Backbone outputs with the item vectors (B, L, n, d) or the queries replaced."""
    if vectors is None:
        vectors = model.tokens.tokens(model.item_codes()[items])
    queries = model.queries if queries is None else queries
    queries = queries.expand(1, visible.shape[1], -1, -1)
    return model.backbone(model.instruction, vectors.flatten(1, 2), queries, visible, vectors.shape[2])


@pytest.fixture
def items():
    return torch.randint(40, (3, 6), generator=torch.Generator().manual_seed(0))


ALL = torch.arange(1, 7)[None]


def test_permuting_the_tokens_inside_items_leaves_answers_unchanged(features, family, items):
    model = small_model(features, family)
    vectors = model.tokens.tokens(model.item_codes()[items])
    orders = torch.stack([torch.randperm(vectors.shape[2]) for _ in range(items.numel())]).view(*items.shape, -1, 1)
    shuffled = torch.gather(vectors, 2, orders.expand_as(vectors))
    assert not torch.equal(shuffled, vectors)
    torch.testing.assert_close(run(model, items, ALL, shuffled), run(model, items, ALL, vectors), **CLOSE)


def test_changing_one_token_changes_no_other_token_of_its_item_but_later_items(features, family, items):
    """Permutation alone would survive a mask that does not mask."""
    model = small_model(features, family)
    vectors = model.tokens.tokens(model.item_codes()[items])
    changed = vectors.clone()
    changed[:, 2, 1] += 1.0
    before, after = run(model, items, ALL, vectors), run(model, items, ALL, changed)
    torch.testing.assert_close(after[:, :2], before[:, :2], **CLOSE)
    assert (after[:, 2:] - before[:, 2:]).abs().amax() > 1e-3
    states = states_of_history(model, vectors)
    moved = (states_of_history(model, changed) - states).abs().amax(dim=(0, 3))
    assert moved[2, 1] > 1e-3
    assert (moved[3:] > 1e-4).all()
    others = torch.ones_like(moved, dtype=torch.bool)
    others[2, 1] = False
    others[3:] = False
    assert moved[others].max() < 1e-5


def states_of_history(model, vectors):
    """Hidden states (B, L, n, d) of the history part, read by a hook on the stack that holds it."""
    stack = model.backbone.model.encoder if hasattr(model.backbone.model, "encoder") else model.backbone.model
    kept = {}
    hook = stack.register_forward_hook(lambda *args: kept.update(out=args[-1].last_hidden_state))
    run(model, None, torch.tensor([[vectors.shape[1]]]), vectors)
    hook.remove()
    a = len(model.instruction)
    count = vectors.shape[1] * vectors.shape[2]
    return kept["out"][:, a : a + count].view(vectors.shape)


def test_permuting_the_queries_permutes_the_answers(features, family, items):
    model = small_model(features, family)
    order = torch.tensor([2, 0, 4, 1, 3])
    plain = run(model, items, ALL)
    torch.testing.assert_close(run(model, items, ALL, queries=model.queries[order]), plain[:, :, order], **CLOSE)


def test_a_query_does_not_see_the_other_queries(features, family, items):
    model = small_model(features, family)
    changed = model.queries.detach().clone()
    changed[1] += 1.0
    before, after = run(model, items, ALL), run(model, items, ALL, queries=changed)
    kept = [0, 2, 3, 4]
    torch.testing.assert_close(after[:, :, kept], before[:, :, kept], **CLOSE)
    assert (after[:, :, 1] - before[:, :, 1]).abs().max() > 1e-3


def test_padding_and_later_items_change_nothing(model, items):
    visible = torch.tensor([[4]])
    short = model.outputs(items[:, :4], visible)
    torch.testing.assert_close(model.outputs(items, visible), short, **CLOSE)
    other = items.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 40
    torch.testing.assert_close(model.outputs(other, visible), short, **CLOSE)
    changed = items.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 40
    assert (model.outputs(changed, visible) - short).abs().max() > 1e-4


def test_a_batch_answers_as_each_user_alone(model):
    histories = Ragged.of([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]])
    together = model.answers(histories)
    for row in range(3):
        torch.testing.assert_close(model.answers(histories.take(np.array([row])))[0], together[row], **CLOSE)


@pytest.mark.parametrize("negatives", ["all", "trained"])
def test_one_pass_loss_and_gradients_equal_those_of_one_sample_per_prefix(model, negatives):
    settings = ObjectiveSettings(negatives=negatives, alpha=0.5, slots=0.2)
    rng = np.random.default_rng(0)
    trained = np.flatnonzero(model.trained.numpy())
    histories = Ragged.of([rng.choice(trained, n) for n in (2, 5, 7, 3)])
    rows = torch.arange(10)

    def gradients(epoch):
        model.zero_grad()
        value, count = 0.0, sum(b.count for b in epoch)
        for index, batch in enumerate(epoch):
            given = (torch.from_numpy(x) for x in (batch.items, batch.visible, batch.targets))
            terms = losses.batch_terms(model, *given, settings, rows)
            if index:
                terms.pop("reconstruction")
            value = value + losses.total(terms, settings, count)
        value.backward()
        return float(value), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    loss_a, a = gradients(one_pass(histories, 10, 1000, rng))
    loss_b, b = gradients(list(per_prefix(histories, 10, 4, rng)))
    assert loss_a == pytest.approx(loss_b, rel=1e-5)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=2e-3, msg=name)


def test_the_folded_score_is_the_weighted_sum_over_slots(model, items):
    outputs, codes = model.outputs(items, torch.tensor([[6]]))[:, 0], model.item_codes()
    weights = {"collaborative": 0.3, "semantic": 0.5, "structural": -0.2}
    per_slot = torch.einsum("bkd,ikd->bki", outputs, model.tokens.tokens(codes))
    expected = (per_slot * torch.tensor(grounding.slot_weights(model.tokens, weights))[None, :, None]).sum(dim=1)
    user, constant = grounding.fold(model.tokens, outputs, weights)
    assert user.shape == (3, model.tokens.code_width)
    torch.testing.assert_close(user @ codes.T + constant[:, None], expected, atol=1e-4, rtol=1e-4)


def test_the_fused_input_is_the_sum_of_the_tokens(features):
    model = small_model(features)
    codes = model.item_codes()
    torch.testing.assert_close(model.tokens.fused(codes), model.tokens.tokens(codes).sum(dim=-2), atol=1e-5, rtol=1e-4)


def test_items_never_trained_on_have_no_collaborative_code(features):
    model = small_model(features)
    start, stop = model.code_columns["collaborative"]
    codes = model.item_codes()[:, start:stop]
    assert (codes[~features.trained] == 0).all()
    assert (codes[features.trained] != 0).any(dim=1).all()


def test_untrained_items_are_no_negatives_unless_asked(features):
    model = small_model(features)
    cold = int(np.flatnonzero(~features.trained)[0])

    def gradient(negatives):
        codes = model.item_codes().requires_grad_()
        outputs = torch.randn(4, 5, model.backbone.width, generator=torch.Generator().manual_seed(0))
        answers = Answers(grounding.slot_codes(model.tokens, outputs), codes, None, None)
        settings = ObjectiveSettings(negatives=negatives, alpha=0.0, slots=0.2)
        terms = losses.loss(model.tokens, answers, torch.tensor([0, 1, 2, 3]), settings, model.trained)
        return torch.autograd.grad(terms["slots"], codes)[0][cold].abs().max()

    assert gradient("trained") == 0
    assert gradient("all") > 0


def test_saved_and_loaded_models_answer_alike_and_hold_no_pickle(model, tmp_path):
    histories = Ragged.of([[1, 2, 3], [4]])
    model.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = SetRecModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.answers(histories), model.answers(histories), atol=0, rtol=0)
    torch.testing.assert_close(again.item_codes(), model.item_codes(), atol=0, rtol=0)


def test_a_pretrained_backbone_is_loaded_by_path_and_keeps_its_weights(features, family, tmp_path):
    from transformers import AutoConfig, AutoModel

    from setrec.models.backbones import scratch_config

    config = scratch_config(family, "tiny", 0.0).to_dict() | {"vocab_size": 50}
    torch.manual_seed(1)
    stock = AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    stock.save_pretrained(tmp_path)
    settings = ModelSettings(backbone=BackboneSettings(pretrained=str(tmp_path)), hidden=(48, 24))
    model = SetRecModel.build(settings, features)
    own = model.backbone.model.state_dict()
    compared = [k for k in stock.state_dict() if "embed" not in k and "shared" not in k]
    assert len(compared) > 10
    for name in compared:
        assert torch.equal(own[name], stock.state_dict()[name]), name


def test_lora_trains_adapters_and_leaves_the_backbone_as_it_was(features, family, tmp_path):
    model = small_model(features, family).train()
    settings = ModelSettings(
        backbone=BackboneSettings(family=family, lora=LoraSettings(rank=2)), semantic_tokens=3, hidden=(48, 24)
    )
    torch.manual_seed(7)
    model = SetRecModel.build(settings, features)
    trainable = [k for k, p in model.backbone.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    terms = losses.batch_terms(
        model, torch.tensor([[1, 2, 3]]), torch.tensor([[3]]), torch.tensor([[4]]), ObjectiveSettings(), torch.arange(4)
    )
    losses.total(terms, ObjectiveSettings(), 1).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for k, p in model.named_parameters() if "lora_B" in k)
    model.save_pretrained(tmp_path)
    again = SetRecModel.from_pretrained(tmp_path)
    histories = Ragged.of([[1, 2, 3]])
    torch.testing.assert_close(again.eval().answers(histories), model.eval().answers(histories))


def test_a_missing_pretrained_backbone_is_one_clear_line(features, tmp_path):
    settings = ModelSettings(backbone=BackboneSettings(pretrained=str(tmp_path / "nothing")))
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        SetRecModel.build(settings, features)
    assert "\n" not in str(caught.value)


def test_long_histories_are_cut_to_the_latest_items(features):
    model = small_model(features, history="fused", max_items=3)
    torch.testing.assert_close(
        model.answers(Ragged.of([[9, 8, 1, 2, 3]])), model.answers(Ragged.of([[1, 2, 3]])), **CLOSE
    )
