"""Codes of items from their texts: unique, repeatable, near where texts are near."""

import numpy as np
import pytest

from pipelines.benchmark.opponents.residual_codes import ITEMS_PER_CODE, residual_codes

WIDTH = 16


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Twelve groups of forty items each; one vector stands three times."""
    rng = np.random.default_rng(0)
    table = np.repeat(rng.normal(size=(12, WIDTH)), 40, axis=0) + 0.1 * rng.normal(size=(480, WIDTH))
    table[[17, 301]] = table[5]
    return table.astype(np.float32)


def test_every_item_has_codes_of_its_own_below_the_size(vectors):
    codes = residual_codes(vectors, levels=3, size=16)
    assert codes.shape == (480, 4)
    assert codes.dtype == np.int64
    assert len(np.unique(codes, axis=0)) == 480
    assert codes.min() == 0
    assert codes[:, :3].max() < 16


def test_the_same_vectors_get_the_same_codes_and_another_seed_others(vectors):
    np.testing.assert_array_equal(residual_codes(vectors), residual_codes(vectors.copy()))
    assert (residual_codes(vectors) != residual_codes(vectors, seed=1)).any()


def test_items_of_the_same_text_differ_only_in_the_last_code(vectors):
    codes = residual_codes(vectors, levels=2, size=64)
    same = codes[[5, 17, 301]]
    assert (same[:, :2] == same[0, :2]).all()
    assert len(set(same[:, 2])) == 3
    assert (np.diff(same[:, 2]) > 0).all()


def test_the_last_code_counts_from_zero_among_equals(vectors):
    codes = residual_codes(vectors, levels=1, size=8)
    for code in np.unique(codes[:, 0]):
        np.testing.assert_array_equal(codes[codes[:, 0] == code, 1], np.arange((codes[:, 0] == code).sum()))


def test_the_first_level_finds_the_groups_and_the_next_say_more(vectors):
    first = residual_codes(vectors, levels=1, size=48)[:, 0].reshape(12, 40)
    groups_of_code = [len({g for g in range(12) if code in first[g]}) for code in np.unique(first)]
    assert np.mean(np.array(groups_of_code) == 1) > 0.9
    distinct = [len(np.unique(residual_codes(vectors, levels=n, size=16)[:, :-1], axis=0)) for n in (1, 2, 3)]
    assert distinct == sorted(set(distinct))


def test_small_catalogues_get_fewer_codes(vectors):
    codes = residual_codes(vectors[40:120], size=256)
    assert codes[:, :3].max() + 1 <= 80 // ITEMS_PER_CODE


@pytest.mark.parametrize("table", [np.ones((9, 4)), np.zeros((1, 4)), np.eye(3)], ids=["equal", "one", "few"])
def test_hardly_any_texts_still_give_unique_codes(table):
    codes = residual_codes(table.astype(np.float32))
    assert len(np.unique(codes, axis=0)) == len(table)
    assert (codes[:, :3] == 0).all()
