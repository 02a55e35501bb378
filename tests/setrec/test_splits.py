import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from setrec.data.splits import TEST, TRAIN, VALID, GlobalTime, by_column, global_time, held_out_items, leave_one_out
from setrec.errors import DataError

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


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.floats(0.05, 0.45), st.floats(0.05, 0.45))
def test_global_time_never_parts_an_instant_and_holds_out_at_least_the_shares(times, valid, test):
    times = np.array(times)
    labels = global_time(times, valid, test)
    assert len({(time, label) for time, label in zip(times, labels, strict=True)}) == len(set(times))
    assert (np.diff(labels[np.argsort(times, kind="stable")]) >= 0).all()
    assert (labels == TEST).sum() >= test * len(times) - 1e-6
    assert (labels >= VALID).sum() >= (valid + test) * len(times) - 1e-6


def test_global_time_without_ties_gives_the_exact_shares():
    labels = global_time(np.random.default_rng(0).permutation(100), 0.1, 0.2)
    assert np.bincount(labels).tolist() == [70, 10, 20]


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


def test_split_words_have_aliases_in_any_case():
    words = pd.Series(["train", "VAL", "Validation", " valid ", "test"])
    assert by_column(words).tolist() == [TRAIN, VALID, VALID, VALID, TEST]


@pytest.mark.parametrize("word", ["dev", "", None])
def test_an_unknown_split_word_is_refused_with_its_place(word):
    with pytest.raises(DataError, match=r"^a\.csv, row 2, column 'part': .* is no split"):
        by_column(pd.Series(["train", word]), file="a.csv", column="part")
