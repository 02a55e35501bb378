"""Transitions: graph and scores against sums done by hand, cold items by their text, and the search of settings."""

import numpy as np
import pytest

from pipelines.benchmark.opponents import transitions
from pipelines.benchmark.opponents.transitions import TransitionScorer, TransitionWalkSettings, tune_transitions
from setrec.data.catalog import TEST, TRAIN, VALID, Histories
from setrec.data.splits import leave_one_out
from setrec.evaluation import ranking
from setrec.models.item_tokens import unit_rows
from setrec.ragged import Ragged
from setrec.scoring.transitions import transition_probabilities

ROWS = Ragged.of([[0, 1, 2], [0, 1], [0, 2], [3, 3]])
PLAIN = TransitionWalkSettings(reach=1, fade=1.0, backward=0.0, shrink=0.0, last=1, decay=1.0, hops=1)
FEW = {"graph": ({"reach": 1, "fade": 1.0},), "shrink": (0.0,), "start": ({"last": 1, "decay": 1.0},)}


def settings(**changes) -> TransitionWalkSettings:
    return PLAIN.model_copy(update=changes)


def cycle(users: int = 60, items: int = 20) -> Histories:
    """Item i is followed by i + 1, around a cycle."""
    rng = np.random.default_rng(0)
    rows = Ragged.of([(rng.integers(items) + np.arange(rng.integers(4, 9))) % items for _ in range(users)])
    return Histories([str(u) for u in range(users)], rows, leave_one_out(rows.offsets))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {(0, 1): 2 / 3, (0, 2): 1 / 3, (1, 2): 1}),
        ({"shrink": 1.0}, {(0, 1): 2 / 4, (0, 2): 1 / 4, (1, 2): 1 / 2}),
        ({"reach": 2, "fade": 0.5}, {(0, 1): 2 / 3.5, (0, 2): 1.5 / 3.5, (1, 2): 1}),
        ({"backward": 0.5}, {(0, 1): 2 / 3, (0, 2): 1 / 3, (1, 2): 0.5, (1, 0): 0.5, (2, 0): 0.5, (2, 1): 0.5}),
    ],
)
def test_arcs_are_the_shares_of_what_followed(changes, expected):
    graph = transition_probabilities(ROWS, 4, settings(**changes)).toarray()
    by_hand = np.zeros((4, 4))
    for arc, share in expected.items():
        by_hand[arc] = share
    np.testing.assert_allclose(graph, by_hand)


@pytest.mark.parametrize("reach", [1, 3, 50])
def test_no_arc_leads_from_one_user_to_the_next_however_far_it_reaches(reach):
    graph = transition_probabilities(Ragged.of([[0], [1], [], [2, 3]]), 4, settings(reach=reach))
    assert graph.nnz == 1
    assert graph[2, 3] == 1


def test_scores_are_the_sum_over_hops_and_the_last_items():
    s = settings(last=2, decay=0.5, hops=2, damping=0.1)
    score = TransitionScorer(transition_probabilities(ROWS, 4, s), None, s)(Ragged.of([[2, 1, 0], [], [0, 1]]))
    # Item 0 starts with 2/3 and item 1 with 1/3 of the weight, in the last row the other way round.
    assert score.dtype == np.float32
    np.testing.assert_allclose(score[0], [0, 4 / 9, 2 / 9 + 1 / 3 + 0.1 * 4 / 9, 0], rtol=1e-6)
    np.testing.assert_allclose(score[1], np.zeros(4))
    np.testing.assert_allclose(score[2], [0, 2 / 9, 1 / 9 + 2 / 3 + 0.1 * 2 / 9, 0], rtol=1e-6)


def test_an_item_that_nobody_met_is_ranked_by_its_text():
    text = np.array([[1, 0], [0, 1], [0, 1], [1, 0], [0.9, 0.1], [0, 0]], dtype=np.float32)
    s = settings(text=0.1)
    score = TransitionScorer(transition_probabilities(ROWS, 6, s), unit_rows(text), s)(Ragged.of([[3], [1]]))
    assert set(score[0].argsort()[-3:]) == {0, 3, 4}
    assert score[1].argmax() == 2
    assert score[:, 5].tolist() == [0, 0]
    np.testing.assert_allclose(score[0, 4], 0.1 * unit_rows(text)[3] @ unit_rows(text)[4], rtol=1e-5)


def test_a_batch_scores_as_its_users_one_by_one():
    histories, text = cycle(), np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
    s = TransitionWalkSettings()
    model = TransitionScorer(transition_probabilities(histories.upto(TRAIN), 20, s), unit_rows(text), s)
    history = histories.upto(VALID)
    np.testing.assert_allclose(model(history), np.concatenate([model(Ragged.of([row])) for row in history]), atol=1e-6)


def test_on_a_cycle_the_next_item_is_found():
    histories = cycle()
    model, tried = tune_transitions(histories, 20)
    assert ranking.mean_metric(model, ranking.Cases.of(histories, TEST), "recall@1") > 0.95
    best = max(row["ndcg@10"] for row in tried)
    assert ranking.mean_metric(model, ranking.Cases.of(histories, VALID)) == pytest.approx(best)


def test_tuning_repeats_itself_and_never_looks_at_the_test_items(monkeypatch):
    monkeypatch.setattr(transitions, "GRID", {**transitions.GRID, **FEW})
    histories, text = cycle(), np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
    first, again = (tune_transitions(histories, 20, text, users=30, seed=1)[1] for _ in range(2))
    assert first == again
    blind = histories.splits != TEST
    changed = Histories(histories.user_ids, histories.items.where(blind), histories.splits[blind])
    assert tune_transitions(changed, 20, text, users=30, seed=1)[1] == first


def test_tuning_ends_when_time_is_over_and_without_validation_takes_the_defaults():
    histories = cycle()
    whole, part = tune_transitions(histories, 20)[1], tune_transitions(histories, 20, over=lambda: True)[1]
    assert part == whole[: len(part)]
    assert 0 < len(part) < len(whole)
    rows = histories.upto(TRAIN)
    model, tried = tune_transitions(Histories(histories.user_ids, rows, np.zeros(len(rows.values), np.int8)), 20)
    assert tried == []
    assert model.settings == TransitionWalkSettings()
