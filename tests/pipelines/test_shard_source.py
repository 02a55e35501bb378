"""Shards on disk are read as the histories they hold; validation users are drawn by the seed."""

import numpy as np
import pytest

from pipelines.training.shard_source import ShardSource, validation_cases
from pipelines.training.worker import Validation
from setrec.data.catalog import TRAIN, VALID, Histories
from setrec.errors import DataError
from setrec.evaluation.ranking import Cases
from setrec.ragged import Ragged


@pytest.fixture
def histories() -> Histories:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 50, int(rng.integers(3, 9))) for _ in range(60)]
    splits = np.concatenate([[0] * (len(row) - 2) + [1, 2] for row in rows]).astype(np.int8)
    return Histories([f"u{i}" for i in range(60)], Ragged.of(rows), splits)


def shards(histories: Histories, folder, count: int) -> ShardSource:
    paths = []
    for number, rows in enumerate(np.array_split(np.arange(len(histories)), count)):
        items = histories.items.take(rows)
        begin, end = histories.items.offsets[rows[0]], histories.items.offsets[rows[-1] + 1]
        part = Histories([histories.user_ids[r] for r in rows], items, histories.splits[begin:end])
        paths.append(folder / f"part-{number:05d}.parquet")
        part.save(paths[-1])
    return ShardSource(paths, 50)


def as_lists(rows: Ragged) -> list[list[int]]:
    return [row.tolist() for row in rows]


def test_shards_together_hold_the_training_items_of_all_users(histories, tmp_path):
    source = shards(histories, tmp_path, 4)
    assert [source.users(shard) for shard in range(4)] == [15] * 4
    assert sum((as_lists(source.read(s)) for s in range(4)), []) == as_lists(histories.upto(TRAIN))  # noqa: RUF017


def test_a_source_can_hold_validation_items_too(histories, tmp_path):
    source = ShardSource(shards(histories, tmp_path, 2).paths, 50, upto=VALID)
    assert [row for shard in range(2) for row in as_lists(source.read(shard))] == as_lists(histories.upto(VALID))


def test_validation_cases_of_few_users_are_all_of_them(histories, tmp_path):
    whole, found = Cases.of(histories, VALID), validation_cases(shards(histories, tmp_path, 3), 1000, 0)
    assert as_lists(found.history) == as_lists(whole.history)
    assert as_lists(found.truth) == as_lists(whole.truth)


def test_of_many_users_a_sample_is_validated_on_that_the_seed_decides(histories, tmp_path):
    source = shards(histories, tmp_path, 3)
    everyone = as_lists(validation_cases(source, 1000, 0).history)

    def sample(seed):
        return as_lists(validation_cases(source, 20, seed).history)

    assert sample(1) == sample(1) != sample(2)
    assert len(sample(1)) == 20
    places = [everyone.index(row) for row in sample(1)]
    assert places == sorted(places)
    assert {place // 20 for place in places} == {0, 1, 2}


def test_workers_share_the_cases_and_every_case_counts_once(histories, tmp_path):
    cases = validation_cases(shards(histories, tmp_path, 1), 1000, 0)
    parts = [Validation(cases, rank, 7) for rank in range(7)]
    assert len({len(part.own) for part in parts}) == 1
    rows = [part.own.users[part.counted] for part in parts]
    assert sorted(np.concatenate(rows)) == sorted(cases.users)


def test_item_rows_beyond_the_catalogue_are_refused_by_the_name_of_the_file(histories, tmp_path):
    source = shards(histories, tmp_path, 2)
    with pytest.raises(DataError, match=r"part-00001\.parquet.*catalogue does not have"):
        ShardSource(source.paths, 3).read(1)
