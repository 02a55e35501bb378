import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from setrec.data.splits import TEST, TRAIN, VALID, GlobalTime, held_out_items, leave_one_out

lengths_of_users = st.lists(st.integers(0, 12), max_size=20)


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def slow_leave_one_out(lengths, min_history):
    labels = []
    for length in lengths:
        held = [VALID, TEST] if length >= min_history + 2 else []
        labels += [TRAIN] * (length - len(held)) + held
    return labels


@given(lengths_of_users, st.integers(1, 4))
def test_leave_one_out_equals_the_loop_over_users(lengths, min_history):
    labels = leave_one_out(offsets_of(lengths), min_history)
    assert labels.dtype == np.int8
    assert labels.tolist() == slow_leave_one_out(lengths, min_history)


def test_users_with_fewer_than_three_interactions_only_train():
    assert leave_one_out(offsets_of([1, 2, 3])).tolist() == [TRAIN, TRAIN, TRAIN, TRAIN, VALID, TEST]


def test_shares_that_leave_no_training_are_refused():
    with pytest.raises(ValidationError, match="nothing would be left"):
        GlobalTime(valid=0.5, test=0.5)


def test_held_out_items_are_a_share_of_the_trained_ones_and_repeat_with_the_seed():
    trained = np.arange(50) % 5 > 0
    cold = held_out_items(trained, 0.25, seed=3)
    assert cold.sum() == 10
    assert not (cold & ~trained).any()
    assert np.array_equal(cold, held_out_items(trained, 0.25, seed=3))
    assert not np.array_equal(cold, held_out_items(trained, 0.25, seed=4))
    assert not held_out_items(trained, 0.0, seed=3).any()
