"""Events that weigh differently: what is read, what is avoided, and what weights do to losses and transitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_models import ITEMS, small_model

from setrec.data.catalog import TEST, TRAIN, Histories
from setrec.data.events import avoided, read, weigh_differently
from setrec.data.interactions import distinct
from setrec.errors import DataError
from setrec.evaluation.ranking import Cases
from setrec.models.grounding import LogitBias
from setrec.ragged import Ragged
from setrec.scoring.item_graph import Reading
from setrec.scoring.model_scores import model_scorer
from setrec.scoring.transitions import TransitionSettings, transition_component, transition_probabilities
from setrec.training.sampled_softmax import LogUniformSampler, sampled_cross_entropy
from setrec.training.settings import ObjectiveSettings, TrainingSettings
from setrec.training.softmax import catalogue_cross_entropy
from setrec.training.trainer import Trainer

EVENTS = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1.0, 3.0, -1.0, -2.0])), max_size=9), max_size=4
)


def events_of(rows):
    ragged = Ragged.of([[item for item, _ in row] for row in rows])
    return replace(ragged, weights=np.array([weight for row in rows for _, weight in row], np.float32))


def pairs(events, row):
    at = slice(events.offsets[row], events.offsets[row + 1])
    return list(zip(events.values[at].tolist(), events.weights[at].tolist(), strict=True))


@given(EVENTS)
def test_an_item_whose_last_event_weighs_less_than_nothing_is_avoided_and_not_read(rows):
    events, against = events_of(rows), avoided(events_of(rows))
    for number, row in enumerate(rows):
        last = dict(row)
        kept = [(item, weight) for item, weight in row if weight > 0 and last[item] > 0]
        assert pairs(read(events), number) == kept
        if against is not None:
            expected = [
                (item, -weight) for at, (item, weight) in enumerate(row)
                if weight < 0 and item not in {other for other, _ in row[at + 1 :]}
            ]  # fmt: skip
            assert pairs(against, number) == expected
    assert (against is None) == all(weight > 0 for row in rows for weight in dict(row).values())


def test_equal_weights_are_none():
    assert not weigh_differently({"view": 3.0, "click": 3.0, "scroll": 0.0})
    assert weigh_differently({"view": 1.0, "dislike": -1.0})
    plain = Ragged.of([[1, 2], [3]])
    assert read(plain) is plain
    assert avoided(plain) is None


def test_weights_stay_with_their_events():
    events = events_of([[(1, 1.0), (2, 5.0)], [(3, 2.0)]])
    assert events.take(np.array([1, 0])).weights.tolist() == [2.0, 1.0, 5.0]
    assert events.where(events.values != 1).weights.tolist() == [5.0, 2.0]
    assert Ragged.joined([Ragged.of([[7]]), events]).weights.tolist() == [1.0, 1.0, 5.0, 2.0]


def test_histories_keep_weights_on_disk_and_refuse_broken_ones(tmp_path):
    made = Histories(["u"], events_of([[(1, 1.0), (2, -5.0)]]), np.array([TRAIN, TEST], np.int8))
    made.save(tmp_path / "h.parquet")
    assert Histories.load(tmp_path / "h.parquet").items.weights.tolist() == [1.0, -5.0]
    replace(made, items=events_of([[(1, 1.0), (2, float("nan"))]])).save(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="weights"):
        Histories.load(tmp_path / "bad.parquet")


def test_what_is_avoided_is_neither_a_truth_nor_trained_on_but_known():
    items = events_of([[(1, 1.0), (2, -1.0), (3, 1.0), (4, -1.0)], [(1, -1.0), (2, 1.0)]])
    histories = Histories(["u", "v"], items, np.array([0, 0, TEST, TEST, 0, TEST], np.int8))
    assert histories.train_counts(5).tolist() == [0, 1, 0, 0, 0]
    cases = Cases.of(histories, TEST)
    assert cases.users.tolist() == [0]
    assert cases.skipped == 1
    assert cases.history[0].tolist() == [1, 2]
    assert cases.truth[0].tolist() == [3]


def test_a_dislike_repeats_no_other_event():
    users, items = np.zeros(5, int), np.array([7, 7, 7, 7, 8])
    weights = np.array([1, 5, -1, -1, 1.0])
    assert distinct(users, items, "first", None, weights).tolist() == [True, False, True, False, True]
    assert distinct(users, items, "last", None, weights).tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("sampled", [False, True])
def test_a_target_counts_its_weight_in_loss_and_gradients(sampled):
    torch.manual_seed(0)
    users, codes = torch.randn(9, 4, requires_grad=True), torch.randn(12, 4, requires_grad=True)
    by, targets = torch.tensor(0.3, requires_grad=True), torch.randint(12, (9,))
    rows, items = torch.tensor([0, 2, 2, 5]), torch.tensor([3, int(targets[2]), int(targets[2] + 1) % 12, 5])
    weights = torch.tensor([1.0, 5, 2, 1, 1, 3, 1, 1, 2])[:, None]
    bias = [LogitBias(rows, items, by)]
    if sampled:
        drawn = LogUniformSampler(np.arange(12), np.ones(12, bool), 12).draw(torch.Generator())
        ours = sampled_cross_entropy(users, codes, targets, drawn, bias, weights)
    else:
        ours = catalogue_cross_entropy(users, codes, targets, bias, weights)
    logits = (users @ codes.T).index_put((rows, items), by.expand(4), accumulate=True)
    plain = (F.cross_entropy(logits, targets, reduction="none") * weights[:, 0]).sum()
    torch.testing.assert_close(ours, plain)
    wanted = (users, codes, by)
    for a, b in zip(torch.autograd.grad(ours, wanted), torch.autograd.grad(plain, wanted), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("samples", ["one_pass", "per_prefix"])
def test_training_depends_on_ratios_of_weights_alone_and_on_these(features, samples):
    rows = [[(i, 1.0 + 4 * (i % 3 == 0)) for i in range(s, s + 8)] for s in range(12)]
    events, models = events_of(rows), {}
    settings = TrainingSettings(epochs=1, targets_per_batch=32, precision="float32", samples=samples)
    plain = replace(events, weights=None)
    tripled = replace(events, weights=3 * events.weights)
    even = replace(events, weights=np.full_like(events.weights, 2.0))
    disliked = Ragged.joined([events_of([[*row, (ITEMS - 2, -1.0)]]) for row in rows])
    given = {"plain": plain, "even": even, "weighed": events, "tripled": tripled, "disliked": disliked}
    for name, histories in given.items():
        torch.manual_seed(0)
        model = small_model(features, "qwen3", "fused", max_items=8)
        Trainer(model, read(histories), lambda _: [0.5], settings, ObjectiveSettings()).epoch()
        models[name] = model_scorer(model)(Ragged.of([[1, 2, 3]]))
    np.testing.assert_allclose(models["even"], models["plain"], atol=1e-4)
    np.testing.assert_allclose(models["tripled"], models["weighed"], atol=1e-4)
    np.testing.assert_array_equal(models["disliked"], models["weighed"])
    assert np.abs(models["weighed"] - models["plain"]).max() > 1e-3


def test_transitions_count_what_an_event_weighs_and_dislikes_lower_them():
    rng, s = np.random.default_rng(0), TransitionSettings(reach=2, fade=0.5, backward=0.25, shrink=2.0)
    rows = [[(int(i), float(w)) for i, w in zip(rng.integers(0, 6, 7), rng.choice([1, 4, -1], 7), strict=True)]
            for _ in range(9)]  # fmt: skip
    mean = np.mean([w for row in rows for _, w in row if w > 0])
    written = np.zeros((6, 6))
    for row in rows:
        for a, (i, before) in enumerate(row):
            for d, (j, after) in enumerate(row[a + 1 : a + 3]):
                if i != j and before > 0:
                    written[i, j] += 0.5**d * after / mean
                if i != j and after > 0:
                    written[j, i] += 0.25 * 0.5**d * before / mean
    written = np.maximum(written, 0)
    written /= np.maximum(written.sum(axis=1, keepdims=True) + 2.0, 1e-9)
    found = transition_probabilities(events_of(rows), 6, s).toarray()
    np.testing.assert_allclose(found, written, atol=1e-6)


def test_a_history_counts_what_its_events_weigh():
    graph = transition_component(
        Ragged.of([[0, 1], [2, 3], [4, 5]]), 6, TransitionSettings(), Reading(power=1, decay=1)
    )
    places, values = graph.entries(events_of([[(0, 3.0), (2, 1.0)]]))
    alone = [graph.entries(Ragged.of([[item]])) for item in (0, 2)]
    expected = {1: 0.75 * alone[0][1][0], 3: 0.25 * alone[1][1][0]}
    assert dict(zip(places.values.tolist(), values.tolist(), strict=True)) == pytest.approx(expected)
    places, values = graph.entries(events_of([[(0, 1.0), (2, -0.5)]]))
    expected = {1: alone[0][1][0], 3: -0.5 * alone[1][1][0]}
    assert dict(zip(places.values.tolist(), values.tolist(), strict=True)) == pytest.approx(expected)
