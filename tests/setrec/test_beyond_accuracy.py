"""Lists of best items, and what they are beside accurate, against sums done by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from setrec.evaluation import beyond_accuracy
from setrec.evaluation.beyond_accuracy import best_items, gini, user_values
from setrec.ragged import Ragged


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6))
def test_best_items_are_the_full_sort_without_the_history(seed, items, count):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(4 * items).reshape(4, items).astype(np.float32)
    history = Ragged.of([rng.choice(items, rng.integers(0, items + 1), replace=False) for _ in range(4)])
    found = best_items(scores, history, count)
    for row in range(4):
        left = np.setdiff1d(np.arange(items), history[row])
        expected = left[np.argsort(-scores[row, left])][:count].tolist()
        assert found[row].tolist() == expected + [-1] * (count - len(expected))


def test_gini_is_0_for_equal_counts_and_near_1_for_a_single_item():
    assert gini(np.full(50, 3)) == pytest.approx(0)
    assert gini(np.eye(1, 100).ravel()) == pytest.approx(0.99)
    x = np.array([5, 0, 2, 9])
    assert gini(x) == pytest.approx(np.abs(x[:, None] - x).sum() / (2 * len(x) ** 2 * x.mean()))


def test_values_of_lists_are_those_counted_by_hand():
    counts, lists = np.array([6, 0, 1, 0]), np.array([[0, 1], [2, -1]])
    vectors = np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8]], dtype=np.float32)
    found = user_values(lists, counts, vectors)
    assert found["popularity"].tolist() == [3, 1]
    assert found["new_items"].tolist() == [0.5, 0]
    assert found["distance"] == pytest.approx([1, 0])
    assert found["novelty"] == pytest.approx([-np.log2(7 / 11 * 1 / 11) / 2, -np.log2(2 / 11)])
    rows = {row["metric"]: row for row in beyond_accuracy.rows("x", lists, counts, vectors)}
    assert rows["coverage@2"]["value"] == 0.75
    assert rows["popularity@2"]["low"] <= 2 == rows["popularity@2"]["value"] <= rows["popularity@2"]["high"]
