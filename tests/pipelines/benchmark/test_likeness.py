"""How near an item comes to a history by texts: the nearest of its items counts most."""

import numpy as np
import pytest
import scipy.sparse as sp

from pipelines.benchmark.likeness import FEWEST, POWER, Likeness
from pipelines.benchmark.words import word_rows
from setrec.ragged import Ragged
from setrec.transitions import unit_rows

TEXTS = [f"{thing} {maker} {size}" for thing in ("lamp", "rug", "cup") for maker in ("ora", "lund") for size in "ab"]
TEXTS += ["unheard", ""]


@pytest.fixture
def sentences():
    vectors = np.random.default_rng(0).normal(size=(len(TEXTS), 6)).astype(np.float32)
    vectors[-1] = 0.0
    return vectors


def test_it_is_the_stated_power_mean_of_cosines_of_words_and_sentences(sentences):
    words, meant = word_rows(TEXTS).toarray(), unit_rows(sentences)
    cosines = np.maximum((words @ words.T + meant @ meant.T) / 2, 0)
    rows = [[0, 5, 9], [3], []]
    found = Likeness.of(TEXTS, sentences)(Ragged.of(rows))
    for got, history in zip(found, rows, strict=True):
        expected = np.mean(cosines[history] ** POWER, axis=0) ** (1 / POWER) if history else np.zeros(len(TEXTS))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_words_alone_do_where_there_are_no_sentences_and_an_item_without_a_text_is_like_nothing():
    found = Likeness.of(TEXTS)(Ragged.of([[0], [len(TEXTS) - 1]]))
    words = word_rows(TEXTS).toarray()
    np.testing.assert_allclose(found[0], words @ words[0], rtol=1e-4, atol=1e-6)
    assert not found[1].any()
    assert found[0, -1] == 0


def test_an_item_like_one_of_the_history_comes_before_one_a_little_like_all_of_it():
    cosines = np.array([[0.8, 0.3], [0.0, 0.3], [0.0, 0.3]])  # of three items read to two others
    graph = np.zeros((5, 5), dtype=np.float32)
    graph[:3, 3:] = cosines**POWER
    assert cosines.mean(axis=0)[0] < cosines.mean(axis=0)[1]
    near_one, near_all = Likeness(sp.csr_matrix(graph))(Ragged.of([[0, 1, 2]]))[0, 3:]
    assert near_one > 1.5 * near_all


def test_the_order_of_a_history_says_nothing(sentences):
    like = Likeness.of(TEXTS, sentences)
    one, other = like(Ragged.of([[1, 4, 8], [8, 1, 4]]))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_of_many_items_the_greatest_of_each_row_are_kept():
    many = [f"w{i % 40} w{(i * 7) % 50} w{(i * 3) % 11}" for i in range(3 * FEWEST)]
    whole, cut = Likeness.of(many).graph, Likeness.of(many, entries=1).graph
    assert np.diff(cut.indptr).max() == FEWEST
    assert np.diff(whole.indptr).max() > FEWEST
    for row in range(0, len(many), 17):
        full = np.sort(whole[row].toarray().ravel())[::-1]
        kept = np.sort(cut[row].data)[::-1]
        np.testing.assert_allclose(kept, full[: len(kept)])
        assert len(kept) == min(FEWEST, np.count_nonzero(full))
