import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from setrec.scoring.diversity import GroupLimit, rerank

RNG = np.random.default_rng(3)
SCORES = np.sort(RNG.normal(size=40))[::-1]
VECTORS = RNG.normal(size=(40, 5)).astype(np.float32)


def distance(places):
    unit = VECTORS[places] / np.linalg.norm(VECTORS[places], axis=1, keepdims=True)
    return 1 - (unit @ unit.T)[np.triu_indices(len(places), 1)].mean()


def test_without_diversity_the_order_is_that_of_the_scores():
    np.testing.assert_array_equal(rerank(SCORES, VECTORS, 10, 0.0), np.arange(10))


def test_more_diversity_gives_a_list_whose_items_are_further_apart_and_lower_in_score():
    lists = [rerank(SCORES, VECTORS, 10, d) for d in (0.0, 0.5, 0.9)]
    assert distance(lists[0]) < distance(lists[1]) < distance(lists[2])
    assert SCORES[lists[0]].sum() > SCORES[lists[1]].sum() > SCORES[lists[2]].sum()
    assert all(places[0] == 0 for places in lists)  # nothing is before the best


def test_each_choice_is_the_largest_value_of_the_definition():
    unit = VECTORS.astype(np.float64) / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    relevance = (SCORES - SCORES.min()) / (SCORES.max() - SCORES.min())
    places = rerank(SCORES, VECTORS, 8, 0.5).tolist()
    for at in range(1, 8):
        value = 0.5 * relevance - 0.5 * (unit @ unit[places[:at]].T).mean(axis=1)
        value[places[:at]] = -np.inf
        assert value[places[at]] == pytest.approx(value.max(), abs=1e-6)


def test_an_item_that_repeats_one_before_it_comes_after_one_that_does_not():
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert rerank(np.array([3.0, 2.0, 1.0]), vectors, 3, 0.9).tolist() == [0, 2, 1]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=2, unique=True), min_size=1, max_size=30), st.integers(1, 4))
def test_no_group_has_more_items_than_its_limit_and_nothing_is_left_out_without_need(groups, most):
    n = len(groups)
    places = rerank(SCORES[:n], VECTORS[:n], n, 0.4, [GroupLimit(groups, most)])
    counts = {name: sum(name in groups[i] for i in places) for name in "abc"}
    assert max(counts.values()) <= most
    for i in set(range(n)) - set(places.tolist()):
        assert any(counts[name] == most for name in groups[i])


def test_no_candidates_give_an_empty_list():
    assert len(rerank(np.empty(0), np.empty((0, 3), np.float32), 5, 0.5)) == 0
