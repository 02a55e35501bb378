import numpy as np
import pytest

from serving.memory import EventMemory, MemorySettings

WIDTH, ITEMS = 8, 12


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_vote_is_the_softmax_of_cosines_over_what_followed(rng):
    memory, codes, items = EventMemory(WIDTH), rng.normal(size=(30, WIDTH)), rng.integers(0, ITEMS, 30)
    memory.add(codes, items)
    asked, scores = rng.normal(size=(3, WIDTH)), rng.normal(size=(3, ITEMS)).astype(np.float32)
    s = MemorySettings(neighbours=5, temperature=0.3, weight=0.4)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    for row, mixed in enumerate(memory.mix(scores, asked, s)):
        cosine = unit(codes) @ unit(asked)[row]
        near = np.argsort(-cosine)[:5]
        votes = np.exp(cosine[near] / 0.3) / np.exp(cosine[near] / 0.3).sum()
        p = 0.6 * np.exp(scores[row]) / np.exp(scores[row]).sum()
        np.add.at(p, items[near], 0.4 * votes)
        np.testing.assert_allclose(np.exp(mixed), p, rtol=1e-4)


def test_an_item_that_training_never_saw_is_recommended_once_others_chose_it(rng):
    memory, asked = EventMemory(WIDTH), rng.normal(size=(1, WIDTH))
    scores = np.zeros((1, ITEMS), np.float32)
    scores[0, 7] = -20.0
    memory.add(asked + 0.01 * rng.normal(size=(4, WIDTH)), np.full(4, 7))
    assert memory.mix(scores, asked, MemorySettings(weight=0.3)).argmax() == 7


def test_a_weight_of_zero_and_an_empty_memory_change_nothing(rng):
    memory, scores = EventMemory(WIDTH), rng.normal(size=(2, ITEMS)).astype(np.float32)
    assert memory.mix(scores, rng.normal(size=(2, WIDTH)), MemorySettings(weight=0.5)) is scores
    memory.add(rng.normal(size=(3, WIDTH)), np.arange(3))
    assert memory.mix(scores, rng.normal(size=(2, WIDTH)), MemorySettings(weight=0.0)) is scores


def test_items_of_the_history_get_no_votes(rng):
    memory, asked = EventMemory(WIDTH), rng.normal(size=(1, WIDTH))
    memory.add(np.repeat(asked, 2, axis=0), np.array([3, 5]))
    mixed = memory.mix(np.zeros((1, ITEMS), np.float32), asked, MemorySettings(weight=0.5), [np.array([3])])
    assert np.exp(mixed[0, 5]) == pytest.approx(0.5 / ITEMS + 0.5)
    assert np.exp(mixed[0, 3]) == pytest.approx(0.5 / ITEMS)
