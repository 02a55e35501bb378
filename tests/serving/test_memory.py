import numpy as np
import pytest

from serving.memory import EventMemory, MemorySettings
from setrec.ragged import Ragged

WIDTH, ITEMS = 8, 12


def unit(codes):
    return codes / np.linalg.norm(codes, axis=1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_vote_is_the_softmax_of_cosines_over_what_followed(rng):
    memory, codes, items = EventMemory(WIDTH), rng.normal(size=(30, WIDTH)), rng.integers(0, ITEMS, 30)
    memory.add(codes, items)
    asked, scores = rng.normal(size=(3, WIDTH)), rng.normal(size=(3, ITEMS)).astype(np.float32)
    s = MemorySettings(neighbours=5, temperature=0.3, weight=4.0)
    for row, risen in enumerate(memory.raise_scores(scores, asked, s)):
        cosine = unit(codes) @ unit(asked)[row]
        near = np.argsort(-cosine)[:5]
        q = np.zeros(ITEMS)
        np.add.at(q, items[near], np.exp(cosine[near] / 0.3) / np.exp(cosine[near] / 0.3).sum())
        np.testing.assert_allclose(risen, scores[row] + 4 * np.sqrt(q), rtol=1e-4, atol=1e-5)


def test_an_item_that_training_never_saw_is_recommended_once_others_chose_it(rng):
    memory, asked = EventMemory(WIDTH), rng.normal(size=(1, WIDTH))
    scores = np.zeros((1, ITEMS), np.float32)
    scores[0, 7] = -2.0
    memory.add(asked + 0.01 * rng.normal(size=(4, WIDTH)), np.full(4, 7))
    assert memory.raise_scores(scores, asked, MemorySettings()).argmax() == 7


def test_a_weight_of_zero_and_an_empty_memory_change_nothing(rng):
    memory, scores = EventMemory(WIDTH), rng.normal(size=(2, ITEMS)).astype(np.float32)
    asked = rng.normal(size=(2, WIDTH))
    assert memory.raise_scores(scores, asked, MemorySettings(weight=5.0)) is scores
    memory.add(rng.normal(size=(3, WIDTH)), np.arange(3))
    assert memory.raise_scores(scores, asked, MemorySettings(weight=0.0)) is scores


def test_items_of_the_history_get_no_votes(rng):
    memory, asked = EventMemory(WIDTH), rng.normal(size=(1, WIDTH))
    memory.add(np.repeat(asked, 2, axis=0), np.array([3, 5]))
    scores = np.zeros((1, ITEMS), np.float32)
    risen = memory.raise_scores(scores, asked, MemorySettings(weight=2.0), Ragged.of([[3]]))
    assert risen[0, 5] == pytest.approx(2 * np.sqrt(0.5))
    assert risen[0, 3] == 0.0


@pytest.mark.parametrize("count", [1, 7, 8, 64])
def test_neighbours_are_the_same_whoever_else_is_asked_for(rng, count):
    memory, codes = EventMemory(WIDTH), rng.normal(size=(300, WIDTH))
    memory.add(codes, np.arange(300))
    asked = rng.normal(size=(count, WIDTH))
    near, items = memory.neighbours(asked, 9)
    cosines = unit(asked) @ unit(codes).T
    np.testing.assert_array_equal(items, np.argsort(-cosines, axis=1)[:, :9])
    np.testing.assert_allclose(near, -np.sort(-cosines, axis=1)[:, :9], rtol=1e-5)
