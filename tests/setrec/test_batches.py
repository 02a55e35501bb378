import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from setrec.ragged import Ragged
from setrec.training import batches

histories = st.lists(st.integers(1, 30), min_size=1, max_size=8).map(
    lambda lengths: Ragged.of([100 * i + np.arange(n) for i, n in enumerate(lengths)])
)


def pairs(epoch) -> list[tuple[tuple[int, ...], int]]:
    """(history in sight, target) of everything an epoch asks."""
    return sorted(
        (tuple(items[:seen].tolist()), int(target))
        for batch in epoch
        for items, visible, targets in zip(batch.items, batch.visible, batch.targets, strict=True)
        for seen, target in zip(visible, targets, strict=True)
        if target >= 0
    )


@given(histories=histories, limit=st.integers(1, 12), budget=st.integers(1, 60), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_one_pass_asks_for_every_target_once_and_shows_what_came_before_it(histories, limit, budget, seed):
    asked = pairs(batches.one_pass(histories, limit, budget, np.random.default_rng(seed)))
    assert sorted(t for _, t in asked) == sorted(v for row in histories for v in row[1:].tolist())
    for seen, target in asked:
        position = target % 100
        assert seen == tuple(range(target - len(seen), target))
        assert min(position, max(1, limit // 2)) <= len(seen) <= limit


@given(histories=histories, limit=st.integers(31, 40), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_one_pass_and_per_prefix_ask_the_same_where_no_history_is_cut(histories, limit, seed):
    one = batches.one_pass(histories, limit, 50, np.random.default_rng(seed))
    per = batches.per_prefix(histories, limit, 7, np.random.default_rng(seed))
    assert pairs(one) == pairs(per)


@given(histories=histories, parts=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_parts_divide_a_batch_among_workers_without_loss_or_repetition(histories, parts):
    plan = batches.one_pass(histories, 10, 40, np.random.default_rng(0))
    for step, batch in enumerate(plan):
        dealt = [plan.part(step, number, parts) for number in range(parts)]
        assert pairs(dealt) == pairs([batch])
        assert sum(part.count for part in dealt) == batch.count == plan.count(step)


def test_tokens_that_are_no_padding_are_the_items_read_and_the_targets_asked():
    plan = batches.one_pass(Ragged.of([np.arange(9), np.arange(5), np.arange(2)]), 20, 100, np.random.default_rng(0))
    assert [batch.tokens(1, 1) for batch in plan] == [(3 * 8 * 2, 2 * (8 + 4 + 1))]
    assert plan[0].tokens(2, 5) == (3 * 8 * 7, 7 * (8 + 4 + 1))
    assert plan.part(0, 3, 4).tokens(2, 5)[1] == 0


def test_the_same_seed_gives_the_same_epoch_and_another_seed_another():
    rows = Ragged.of([np.arange(20), np.arange(30), np.arange(5)])
    make = lambda seed: batches.one_pass(rows, 8, 16, np.random.default_rng(seed))  # noqa: E731
    assert all((a.items == b.items).all() for a, b in zip(make(1), make(1), strict=True))
    assert pairs(make(1)) != pairs(make(2))
