"""The order of training: every target once an epoch, the same whatever the workers, and exactly resumable."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setrec.data.source import MemorySource, item_counts
from setrec.prefetch import Prefetched
from setrec.ragged import Ragged
from setrec.training.stream import Position, Stream


class Shards:
    """A source over lists in memory that counts what is read."""

    def __init__(self, users: int, shards: int) -> None:
        rng = np.random.default_rng(users)
        # Values name their user and place, so that a target says whose it is.
        rows = [1000 * user + np.arange(int(rng.integers(1, 30))) for user in range(users)]
        self.parts = [Ragged.of(rows[shard::shards]) for shard in range(shards)]
        self.reads = 0

    def __len__(self):
        return len(self.parts)

    def users(self, shard):
        return len(self.parts[shard])

    def read(self, shard):
        self.reads += 1
        return self.parts[shard]


def stream(source, **options) -> Stream:
    return Stream(source, **{"max_items": 8, "targets_per_batch": 40, "seed": 3, "window": 2, **options})


def targets(steps) -> Counter:
    """How often each (user, target) is asked."""
    return Counter(t for s in steps for b in s.parts for t in b.targets[b.targets >= 0].tolist())


@given(users=st.integers(1, 40), shards=st.integers(1, 6), window=st.integers(1, 7), epoch=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_an_epoch_asks_for_every_target_of_every_user_once(users, shards, window, epoch):
    source = Shards(users, shards)
    found = targets(stream(source, window=window).steps(epoch))
    assert found == Counter(v for part in source.parts for row in part for v in row[1:].tolist())


@given(broken=st.integers(0, 40), epoch=st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_a_broken_and_resumed_epoch_asks_the_same_of_the_same_users_in_the_same_order(broken, epoch):
    source = Shards(40, 5)
    whole = list(stream(source).steps(epoch))
    before = whole[: min(broken, len(whole))]
    rest = list(stream(source).steps(epoch, before[-1].then if before else Position()))
    assert targets(before) + targets(rest) == targets(whole)
    for resumed, unbroken in zip(rest, whole[len(before) :], strict=True):
        assert resumed.then == unbroken.then
        assert (resumed.parts[0].items == unbroken.parts[0].items).all()
        assert (resumed.before, resumed.after) == (unbroken.before, unbroken.after)


def test_windows_before_the_position_are_not_read_again():
    source = Shards(40, 6)
    last = [s.then for s in stream(source).steps(0)][-1]
    source.reads = 0
    assert not list(stream(source).steps(0, last))
    assert source.reads == 2


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (3, 1), (2, 2), (1, 3)])
def test_workers_and_passes_divide_the_same_steps(world, accumulate):
    source = Shards(30, 4)
    alone = list(stream(source).steps(1))
    dealt = [list(stream(source, rank=r, world=world, accumulate=accumulate).steps(1)) for r in range(world)]
    for step, parts in zip(alone, zip(*dealt, strict=True), strict=True):
        assert targets([step]) == sum((targets([part]) for part in parts), Counter())
        assert {part.count for part in parts} == {step.count}
        assert all(len(part.parts) == accumulate for part in parts)


def test_epochs_mix_shards_and_users_anew_and_the_seed_decides_how():
    source = Shards(40, 5)

    def order(seed, epoch):
        return [list(targets([s])) for s in stream(source, seed=seed).steps(epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_shares_of_the_epoch_rise_from_none_to_all():
    found = list(stream(Shards(40, 5)).steps(0))
    assert found[0].before == 0
    assert found[-1].after == 1
    assert all(a.after == b.before for a, b in pairwise(found))


def test_counts_of_items_are_those_of_all_shards():
    rows = Ragged.of([[0, 1, 1], [3]])
    assert item_counts(MemorySource(rows), 5).tolist() == [1, 2, 0, 1, 0]


def test_prefetching_keeps_the_order_and_hands_on_the_error_that_comes_in_it():
    def three():
        yield from (1, 2, 3)
        raise ValueError("broken")

    with Prefetched(three(), 2) as ready:
        reading = iter(ready)
        assert [next(reading)[0] for _ in range(3)] == [1, 2, 3]
        with pytest.raises(ValueError, match="broken"):
            next(reading)


def test_a_reader_that_stops_early_ends_the_prefetching_thread():
    with Prefetched(iter(range(1000)), 2) as ready:
        assert next(iter(ready))[0] == 0
    assert not ready._thread.is_alive()
