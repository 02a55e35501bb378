"""Candidates of validation users, and the fit of weights to them."""

import numpy as np
import pytest
import scipy.sparse as sp

from setrec.evaluation import ranking
from setrec.ragged import Ragged
from setrec.scoring.search import fit as fitting
from setrec.scoring.search.candidates import BEST, CandidateTerms
from setrec.scoring.search.table import Part, SearchTable
from setrec.scoring.text_similarity import TextFeatures

ITEMS, USERS, TERMS = 60, 200, ["transitions_near", "transitions_forward", "text_similarity"]


def problem(truths: int = 1) -> tuple[Part, TextFeatures]:
    """Users with random histories, and texts of random words."""
    rng = np.random.default_rng(0)
    rows = [rng.choice(ITEMS, 4 + truths, replace=False) for _ in range(USERS)]
    cases = ranking.Cases(np.arange(USERS), Ragged.of([row[:4] for row in rows]), Ragged.of([row[4:] for row in rows]))
    known = Ragged.of([rng.choice(ITEMS, 6, replace=False) for _ in range(300)])
    words = (rng.random((ITEMS, 12)) < 0.3).astype(np.float32)
    words /= np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1)
    return Part(cases, known, False), TextFeatures(sp.csr_matrix(words))


def table_of(truths: int = 1) -> SearchTable:
    part, texts = problem(truths)
    return SearchTable(None, [part], np.ones(ITEMS, bool), texts, TERMS)


@pytest.mark.parametrize("truths", [1, 3])
def test_where_all_items_are_candidates_ndcg_is_that_of_the_whole_catalogue(truths):
    assert BEST >= ITEMS
    table = table_of(truths)
    candidates = CandidateTerms.of(table, np.ones(ITEMS, bool))
    assert candidates.names == tuple(TERMS)
    assert (candidates.some.sum(axis=1) == ITEMS - 4).all()
    weights = np.array([3.0, 1.0, 0.7])
    (exact,) = table.ndcg(
        lambda batch: {"all": table.total(dict(zip(TERMS, weights, strict=True)), batch)}, [{"all": 1.0}]
    )
    np.testing.assert_allclose(candidates.ndcg(candidates.scores(weights)), exact[0], atol=1e-6)


def test_of_more_items_the_best_by_each_term_are_candidates(monkeypatch):
    monkeypatch.setattr("setrec.scoring.search.candidates.BEST", 3)
    table = table_of()
    candidates = CandidateTerms.of(table, np.ones(ITEMS, bool))
    chosen = candidates.some & (candidates.mass == 0)
    assert chosen.sum(axis=1).max() <= 3 * 4 + 1
    every = CandidateTerms.of(table_of(), np.ones(ITEMS, bool))
    for term in range(3):
        with_all = np.sort(np.where(candidates.some, candidates.values[:, :, term], -1), axis=1)[:, -3:]
        assert (with_all[:, -1] <= every.values[:, :, term].max(axis=1) + 1e-6).all()
        assert (with_all[:, -1] >= np.sort(table_values(table, TERMS[term]), axis=1)[:, -1] - 1e-6).all()


def test_draws_stand_for_all_items_that_are_not_chosen(monkeypatch):
    monkeypatch.setattr("setrec.scoring.search.candidates.BEST", 3)
    monkeypatch.setattr("setrec.scoring.search.candidates.OTHERS", 8)
    candidates = CandidateTerms.of(table_of(), np.ones(ITEMS, bool))
    drawn = candidates.some & (candidates.mass > 0)
    assert drawn.any(axis=1).all()
    assert (candidates.mass[candidates.row, candidates.place] == 0).all()
    stands = np.where(candidates.some, np.exp(candidates.mass), 0).sum(axis=1)
    np.testing.assert_allclose(stands, ITEMS - 4, rtol=1e-5)


def table_values(table: SearchTable, name: str) -> np.ndarray:
    """Values of a term without the history's items, (users, I)."""
    values = np.concatenate([table.term(name, number) for number in range(len(table.batches))])
    history = Ragged.joined([history for _, history, _ in table.batches])
    values[history.row_of_value, history.values] = 0
    return values


def test_users_without_a_truth_among_the_items_are_left_out():
    table, few = table_of(), np.arange(ITEMS) < 20
    candidates = CandidateTerms.of(table, few)
    truth = Ragged.joined([truth for _, _, truth in table.batches])
    assert len(candidates.values) == int(few[truth.values].sum())
    assert CandidateTerms.of(table, np.zeros(ITEMS, bool)) is None


def made_up(users: int, seed: int = 0) -> CandidateTerms:
    """Users whose truth is drawn by the sum of two terms at weights 2 and 0.5; a third term has nothing to do with it,
    a fourth is the same everywhere."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(users, 40, 4)).astype(np.float32)
    values[:, :, 3] = 0
    logits = values @ np.array([2.0, 0.5, 0.0, 0.0], np.float32)
    place = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    some, mass = np.ones((users, 40), bool), np.zeros((users, 40), np.float32)
    return CandidateTerms(("a", "b", "c", "d"), values, some, mass, np.arange(users), place)


def test_the_smooth_objective_has_its_maximum_at_the_weights_found():
    candidates = made_up(800)

    def objective(weights: np.ndarray) -> float:
        scores = candidates.scores(weights).astype(np.float64)
        chance = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        gains = chance[candidates.row, candidates.place] ** fitting.POWER / fitting.POWER
        spread = candidates.values.std(axis=(0, 1))
        return float(gains.mean() - fitting.RIDGE / len(gains) * ((weights * spread) ** 2).sum())

    found = fitting._smooth(candidates)
    best, rng = objective(found), np.random.default_rng(1)
    for _ in range(50):
        moved = np.maximum(found + rng.normal(scale=0.2, size=4) * [1, 1, 1, 0], 0)
        assert objective(moved) <= best + 1e-6


def test_what_decides_is_weighed_as_it_decides_and_what_does_not_hardly():
    weights = fitting.fit(made_up(4000))
    assert weights[3] == 0
    assert weights[0] / weights[1] == pytest.approx(4, rel=0.35)
    assert weights[2] < 0.1 * weights[0]


def test_a_factor_of_a_weight_is_taken_if_it_raises_ndcg_by_more_than_a_standard_error():
    candidates = made_up(2000)
    bad = np.array([1.0, 2.0, 2.0, 0.0])
    better = fitting._climbed(candidates, bad)
    before, after = (candidates.ndcg(candidates.scores(weights)) for weights in (bad, better))
    assert fitting.rises(after, before)
    assert better[2] < bad[2]
    good = fitting.fit(candidates)
    np.testing.assert_array_equal(fitting._climbed(candidates, good), good)


@pytest.mark.parametrize("users", [1, 2, 5])
def test_few_users_whose_truth_is_always_first_have_finite_weights(users):
    candidates = made_up(users)
    candidates.values[np.arange(users), candidates.place] += 5
    weights = fitting.fit(candidates)
    assert np.isfinite(weights).all()
    assert (weights <= 100).all()
    assert candidates.ndcg(candidates.scores(weights)).mean() == 1
