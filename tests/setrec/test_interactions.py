import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from setrec.data.interactions import chronological, distinct, tied

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60)


def columns(rows):
    array = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


@given(pairs)
def test_equal_times_keep_the_order_of_the_file(rows):
    users, times = columns(rows)
    expected = sorted(range(len(rows)), key=lambda row: (users[row], times[row], row))
    assert chronological(users, times).tolist() == expected


@given(pairs, st.integers(0, 3))
def test_shuffled_ties_are_chronological_and_depend_on_the_seed_alone(rows, seed):
    users, times = columns(rows)
    order = chronological(users, times, "shuffle", seed)
    assert [rows[row] for row in order] == sorted(rows)
    assert sorted(order) == list(range(len(rows)))
    assert order.tolist() == chronological(users, times, "shuffle", seed).tolist()


def test_shuffled_ties_differ_between_seeds():
    users = times = np.zeros(50, dtype=int)
    assert chronological(users, times, "shuffle", 1).tolist() != chronological(users, times, "shuffle", 2).tolist()


def test_ties_are_counted_within_a_user_only():
    assert tied(np.array([0, 0, 0, 1, 1]), np.array([1, 1, 2, 2, 2])).tolist() == [False, True, False, False, True]


def test_repeats_keep_the_first_the_last_or_all():
    users, items = np.array([0, 0, 0, 1]), np.array([7, 8, 7, 7])
    assert distinct(users, items, "first").tolist() == [True, True, False, True]
    assert distinct(users, items, "last").tolist() == [False, True, True, True]
    assert distinct(users, items, "all").all()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 2), st.sampled_from([-1.0, 2.0]))))
def test_what_repeats_is_what_one_after_another_finds(rows):
    array = np.array(rows, dtype=np.int64).reshape(-1, 4)
    for keep in ("first", "last", "strongest"):
        best = {}
        for at, (user, item, strength, weight) in enumerate(rows):
            rank = {"first": -at, "last": at, "strongest": (strength, -at)}[keep]
            best[user, item, weight < 0] = max(best.get((user, item, weight < 0), (rank, at)), (rank, at))
        kept = distinct(array[:, 0], array[:, 1], keep, array[:, 2], array[:, 3])
        assert np.flatnonzero(kept).tolist() == sorted(at for _, at in best.values())


def test_the_strongest_of_repeats_is_the_first_of_the_highest():
    users, items = np.array([0, 0, 0, 0]), np.array([7, 7, 7, 8])
    assert distinct(users, items, "strongest", np.array([1.0, 5.0, 5.0, 0.0])).tolist() == [False, True, False, True]


def test_a_part_of_a_file_is_shuffled_as_it_is_in_the_whole():
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 20, 300), rng.integers(0, 3, 300)
    whole = chronological(users, times, "shuffle", 5)
    rows = np.flatnonzero(users % 2 == 0)
    part = rows[chronological(users[rows], times[rows], "shuffle", 5, rows)]
    assert part.tolist() == [row for row in whole.tolist() if users[row] % 2 == 0]
