"""The search for the weights of a hybrid score on made-up validation users."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.evaluation import ranking
from setrec.evaluation.intervals import standard_error
from setrec.ragged import Ragged
from setrec.scoring import registry
from setrec.scoring.hybrid import HybridScorer
from setrec.scoring.model_scores import ModelScores
from setrec.scoring.registry import Sources
from setrec.scoring.search.table import SearchTable
from setrec.scoring.search.temperature import fit_temperature
from setrec.scoring.search.weight_search import expected, halves, search
from setrec.scoring.text_similarity import TextFeatures

ITEMS, USERS = 100, 300


def histories(new: bool = False) -> Histories:
    """Users who go round a ring of items; with ``new`` some go to items without training interactions at the end."""
    rng = np.random.default_rng(0)
    rows, splits = [], []
    for _ in range(USERS):
        start, length = int(rng.integers(0, 50)), int(rng.integers(3, 8))
        row = [(start + step) % 50 for step in range(length)]
        if new:
            row = [*row[-3:-1], 50 + row[-2]]
        rows.append(row)
        splits.append([TRAIN] * (len(row) - 1) + [VALID])
    return Histories([str(u) for u in range(USERS)], Ragged.of(rows), Ragged.of(splits, np.int8).values)


def texts() -> TextFeatures:
    """An item of the ring and the new one fifty further on have a word in common."""
    return TextFeatures(sp.csr_matrix(np.eye(50, dtype=np.float32)[np.arange(ITEMS) % 50]))


def test_halves_know_the_other_half_unless_the_split_is_one_of_global_time():
    h = histories()
    free, timed = halves(h, timed=False), halves(h, timed=True)
    users = np.concatenate([part.cases.users for part in free])
    assert sorted(users.tolist()) == list(range(USERS))
    for part, strict in zip(free, timed, strict=True):
        own = part.cases.users
        others = np.setdiff1d(np.arange(USERS), own)
        assert (part.known.lengths[own] == h.upto(TRAIN).lengths[own]).all()
        assert (part.known.lengths[others] == h.upto(VALID).lengths[others]).all()
        assert (strict.known.lengths == h.upto(TRAIN).lengths).all()


def test_what_predicts_is_chosen_and_what_does_not_is_left_out():
    h = histories()
    found = search(None, halves(h, timed=False), h.trained(ITEMS), texts())
    assert set(found.weights.used) & {"transitions_near", "transitions_wide", "transitions_forward"}
    assert "text_similarity" not in found.weights.used  # the next item shares no word with any of the history
    assert found.valid > 0.9
    assert all(gain["gain"] > 0 for gain in found.gains)
    assert {"slots and components"} <= {row["step"] for row in found.tried}
    scorer = HybridScorer.build(None, found.weights, ~h.trained(ITEMS), Sources(h.upto(TRAIN), ITEMS, texts()))
    assert ranking.mean_metric(scorer, ranking.Cases.of(h, VALID)) > 0.9


def test_nothing_is_chosen_where_nothing_helps():
    rng = np.random.default_rng(1)
    rows = [rng.permutation(ITEMS)[:5] for _ in range(USERS)]
    splits = Ragged.of([[TRAIN] * 4 + [VALID]] * USERS, np.int8).values
    h = Histories([str(u) for u in range(USERS)], Ragged.of(rows), splits)
    found = search(None, halves(h, timed=False), h.trained(ITEMS), None, names=["transitions_near"])
    assert found.weights.used in ((), ("transitions_near",))
    assert all(gain["gain"] > 0 for gain in found.gains)


def test_new_items_get_weights_of_their_own_from_content_alone():
    h = histories(new=True)
    found = search(None, halves(h, timed=True), h.trained(ITEMS), texts())
    assert found.weights.of("text_similarity", np.array(True)) > 0
    assert "text_similarity" in found.weights.used
    scorer = HybridScorer.build(None, found.weights, ~h.trained(ITEMS), Sources(h.upto(TRAIN), ITEMS, texts()))
    cases, new = ranking.Cases.of(h, VALID), ~h.trained(ITEMS)
    among = ranking.evaluate(scorer, cases, [ranking.Group("new", new, new)], ks=(10,))
    assert among.mean(group="new") > 0.6  # of 50 new items the two that are like the history come first


def test_users_count_for_what_is_new_as_often_as_it_will_be_later():
    new, rng = np.arange(ITEMS) < 3, np.random.default_rng(0)
    for count, later in ((12, 0.36), (30, 0.5), (70, 0.7)):  # of a hundred truths; three times, at most half, no less
        values = rng.permutation(np.r_[np.zeros(count, int), np.full(100 - count, 7)]).astype(np.int32)
        for truths in (Ragged(values, np.arange(101)), Ragged(values, np.arange(0, 101, 4))):
            weights = expected(truths, new)
            shares = np.bincount(truths.row_of_value, new[truths.values]) / truths.lengths
            assert np.isclose(weights.mean(), 1)
            if len(truths) == 100:
                assert np.isclose((weights * shares).mean(), later)
            assert np.all(np.diff(weights[np.argsort(shares)]) >= -1e-9)


def twins() -> Histories:
    """Users most of whom choose an item's twin next, the item of the same words; all items have training
    interactions."""
    rng = np.random.default_rng(2)
    rows = [[one, one + 50, other, other + 50] for one, other in rng.integers(0, 50, (800, 2)) if one != other]
    for row in rows[::3]:
        row[3] = int(rng.choice(np.setdiff1d(np.arange(ITEMS), row)))
    splits = np.tile(np.array([TRAIN] * 3 + [VALID], np.int8), len(rows))
    return Histories([str(u) for u in range(len(rows))], Ragged.of(rows), splits)


def test_where_validation_has_no_new_items_a_part_of_the_others_stands_for_them():
    h = twins()
    assert h.trained(ITEMS).all()
    found = search(None, halves(h, timed=False), h.trained(ITEMS), texts())
    assert found.weights.of("text_similarity", np.array(True)) > 0
    assert {"new items among themselves", "new items"} <= {row["step"] for row in found.tried}
    # As though the twins were new: by words alone they are found.
    known = Ragged.of([row[[0, 2]] for row in h.items])
    scorer = HybridScorer.build(None, found.weights, np.arange(ITEMS) >= 50, Sources(known, ITEMS, texts()))
    assert 50 + scorer(Ragged.of([[3]]))[0, 50:].argmax() == 53
    # What is told of validation is what the weights are worth there, where nothing is new.
    alone = HybridScorer.build(None, found.weights, ~h.trained(ITEMS), Sources(h.upto(TRAIN), ITEMS, texts()))
    assert found.valid == pytest.approx(ranking.mean_metric(alone, ranking.Cases.of(h, VALID)), abs=0.05)


def test_new_items_cost_the_others_no_more_than_is_allowed(monkeypatch):
    h = twins()
    levels = {}
    for share in (0.0, 0.05, 1.0):
        monkeypatch.setattr("setrec.scoring.search.weight_search.MOST_LOST", share)
        weights = search(None, halves(h, timed=False), h.trained(ITEMS), texts()).weights
        # The highest score of a new item.
        levels[share] = weights.new_items.level + float(weights.of("text_similarity", np.array(True)))
    assert levels[0.0] <= levels[0.05] <= levels[1.0]
    assert levels[0.0] < levels[1.0]


def test_without_validation_users_nothing_is_searched():
    h = Histories(["u"], Ragged.of([[1, 2]]), np.array([TRAIN, TRAIN], np.int8))
    found = search(None, halves(h, timed=False), h.trained(ITEMS), None)
    assert found.weights.used == ()
    assert np.isnan(found.valid)


def test_an_unknown_component_is_refused():
    with pytest.raises(KeyError):
        search(None, halves(histories(), timed=False), np.ones(ITEMS, bool), None, names=["none of that name"])
    assert "none of that name" not in registry.kinds()


def test_a_temperature_undoes_the_scale_of_scores():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2000, 20))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = [[int(rng.choice(20, p=p))] for p in chance]
    cases = ranking.Cases(np.arange(2000), Ragged.of([[]] * 2000), Ragged.of(truth))
    place = iter(np.array_split(7 * logits, range(256, 2000, 256)))
    first = 7 * logits[:1]
    scores = [first, *place]
    found = fit_temperature(lambda history: scores.pop(0).astype(np.float32), cases)
    assert found == pytest.approx(7, rel=0.1)
    assert standard_error(np.array([1.0, 3.0, np.nan])) == pytest.approx(1 / np.sqrt(2))


class TwoKinds:
    """A model with two kinds of slots, both inexact: ``collaborative`` knows which two items may follow, ``text`` which
    of two habits a user has."""

    kinds = ("collaborative", "text")
    leg = device = None
    tokens = SimpleNamespace(read_kinds=kinds)

    def __init__(self) -> None:
        self.code_columns = {"collaborative": (0, ITEMS), "text": (ITEMS, ITEMS + 2)}

    def eval(self) -> "TwoKinds":
        return self

    def repeat_bias(self, weights) -> float:
        return 0.0

    def item_codes(self) -> torch.Tensor:
        return torch.cat([torch.eye(ITEMS), torch.eye(2)[torch.arange(ITEMS) % 2]], dim=1)

    def user_codes(self, history, weights, codes) -> torch.Tensor:
        rows = []
        for items in history:
            row = np.random.default_rng(items).normal(0, 0.5, ITEMS + 2)
            row[[(items[-1] + 1) % 50, (items[-1] + 2) % 50]] += 1
            row[ITEMS + (items[-1] + 1 + items[0] // 25) % 2] += 1
            rows.append(row)
        each = np.repeat([weights["collaborative"], weights["text"]], [ITEMS, 2])
        return torch.tensor(np.array(rows) * each, dtype=torch.float32)


def two_habits() -> Histories:
    """Users who go round the ring by one step or by two, as their first item is below 25 or not."""
    rng = np.random.default_rng(0)
    rows = [
        [(start + step * (1 + start // 25)) % 50 for step in range(int(rng.integers(4, 8)))]
        for start in rng.integers(0, 50, USERS)
    ]
    splits = Ragged.of([[TRAIN] * (len(row) - 1) + [VALID] for row in rows], np.int8).values
    return Histories([str(u) for u in range(USERS)], Ragged.of(rows), splits)


def test_a_slot_that_repeats_what_the_components_count_weighs_less_beside_them():
    h = two_habits()
    found = search(TwoKinds(), halves(h, timed=False), h.trained(ITEMS), None)
    alone, beside = found.weights.of_model_alone, found.weights.slots
    assert beside["collaborative"] / beside["text"] < alone["collaborative"] / alone["text"]
    again = search(TwoKinds(), halves(h, timed=False), h.trained(ITEMS), None, names=())
    assert again.weights.slots == again.weights.of_model_alone == alone
    assert found.valid > again.valid


def test_a_model_that_adds_nothing_orders_what_no_component_knows():
    class Silent(TwoKinds):
        def user_codes(self, history, weights, codes) -> torch.Tensor:
            return 0 * super().user_codes(history, weights, codes)

    h = histories()
    found = search(Silent(), halves(h, timed=False), h.trained(ITEMS), None)
    assert found.weights.components
    assert all(weight > 0 for weight in found.weights.slots.values())
    assert max(found.weights.slots.values()) < 0.1 * max(found.weights.components.values())


def test_scaling_a_kind_of_slots_is_the_model_at_that_weight():
    h = two_habits()
    (part, _), weights = halves(h, timed=False), {"collaborative": 0.7, "text": 0.3}
    table = SearchTable(ModelScores(TwoKinds(), weights), [part], h.trained(ITEMS), None, ["transitions_near"])
    before = table.slot("text", 0)
    table.scale("text", 0.5)
    history = part.cases.batch(0, 256)[0]
    np.testing.assert_allclose(table.slot("text", 0), 0.5 * before)
    np.testing.assert_allclose(
        table.model(0), ModelScores(TwoKinds(), weights | {"text": 0.15}).dense(history), rtol=1e-5
    )
