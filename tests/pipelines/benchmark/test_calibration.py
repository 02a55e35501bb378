import json

import numpy as np
import pytest

from pipelines.benchmark.analysis.calibration import calibration, fit_temperature
from setrec.evaluation.ranking import Cases
from setrec.ragged import Ragged

ITEMS, USERS = 30, 3000


class Honest:
    """Scores that are log-probabilities of what is drawn, times ``sharpness``; a user is known by the history."""

    def __init__(self, sharpness: float = 1.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.logits = 1.5 * rng.standard_normal((ITEMS * ITEMS, ITEMS)).astype(np.float32)
        self.sharpness, self.rng = np.float32(sharpness), rng

    def __call__(self, history: Ragged) -> np.ndarray:
        pair = history.values.reshape(-1, 2).astype(int)
        return self.sharpness * self.logits[pair[:, 0] * ITEMS + pair[:, 1]]

    def cases(self, users: int, truths: int) -> Cases:
        """Histories of two items; truths drawn from the softmax without them, with repetitions taken out."""
        history = Ragged.of([self.rng.choice(ITEMS, 2, replace=False) for _ in range(users)])
        scores = self(history) / self.sharpness
        scores[history.row_of_value, history.values] = -np.inf
        odds = np.exp(scores.astype(float))
        odds /= odds.sum(axis=1, keepdims=True)
        return Cases(np.arange(users), history, Ragged.of([self.rng.choice(ITEMS, truths, p=p) for p in odds]))


def by(rows):
    return {(row["group"], row["metric"]): row for row in rows}


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 30.0])
def test_honest_scores_are_calibrated_whatever_their_scale(sharpness):
    scorer = Honest(sharpness)
    valid, test = scorer.cases(USERS, 2), scorer.cases(USERS, 2)
    rows = calibration("honest", scorer, valid, test)
    json.dumps(rows, allow_nan=False)
    found = by(rows)
    assert found["all", "temperature"]["value"] == pytest.approx(sharpness, rel=0.05)
    assert found["all", "ece"]["value"] < 0.03
    assert found["all", "possible"]["value"] == 1.0
    bins = [row for (group, _), row in found.items() if group.startswith("bin")]
    assert len(bins) == 10
    assert sum(row["users"] for row in bins) == USERS
    assert [row["confidence"] for row in bins] == sorted(row["confidence"] for row in bins)
    inside = sum(row["low"] <= row["confidence"] <= row["high"] for row in bins)
    assert inside >= 7


def test_a_scale_changes_the_temperature_alone():
    scorer, sharp = Honest(1.0), Honest(9.0)
    valid, test = scorer.cases(400, 1), scorer.cases(400, 1)
    plain, scaled = (by(calibration("x", one, valid, test)) for one in (scorer, sharp))
    assert scaled["all", "temperature"]["value"] == pytest.approx(9 * plain["all", "temperature"]["value"], rel=0.01)
    for metric in ("nll", "ece"):
        assert scaled["all", metric]["value"] == pytest.approx(plain["all", metric]["value"], abs=2e-3)


def test_the_likelihood_is_that_of_the_definition_and_no_temperature_has_a_better_one_on_validation():
    scorer = Honest(3.0)
    cases = scorer.cases(300, 3)
    best = fit_temperature(scorer, cases)

    def nll(temperature: float) -> float:
        total = 0.0
        for history, truth, scores in zip(cases.history, cases.truth, scorer(cases.history), strict=True):
            scores = scores.astype(float) / temperature
            scores[history] = -np.inf
            total -= (scores[truth] - np.log(np.exp(scores).sum())).sum()
        return total / len(cases.truth.values)

    assert nll(best) == pytest.approx(by(calibration("x", scorer, cases, cases))["all", "nll"]["value"], rel=1e-5)
    assert all(nll(best) <= nll(best * other) for other in (0.9, 1.02, 1.1, 4.0))


def test_truths_that_cannot_be_found_are_told_and_left_out():
    rng = np.random.default_rng(3)
    history = Ragged.of([[0, 1], [2, 3], [4, 5], [6, 7]])
    truth = Ragged.of([[0, 9], [10], [11], [6]])
    scores = rng.standard_normal((4, ITEMS)).astype(np.float32)
    scores[1, 10] = -np.inf
    scores[3] = -np.inf
    cases = Cases(np.arange(4), history, truth)
    found = by(calibration("x", lambda h: scores[h.values.reshape(-1, 2)[:, 0] // 2], cases, cases))
    assert found["all", "possible"]["value"] == pytest.approx(2 / 5)
    assert found["all", "nll"]["users"] == 2
    json.dumps(list(found.values()), allow_nan=False)


def test_scores_that_tell_nothing_apart_are_uniform_and_an_impossible_test_has_no_rows():
    history, truth = Ragged.of([[0], [1]]), Ragged.of([[2], [3]])
    cases = Cases(np.arange(2), history, truth)
    found = by(calibration("x", lambda h: np.zeros((len(h), ITEMS), np.float32), cases, cases))
    assert found["all", "temperature"]["value"] == 1.0
    assert found["all", "nll"]["value"] == pytest.approx(np.log(ITEMS - 1))
    repeated = Cases(np.arange(2), history, history)
    assert calibration("x", lambda h: np.zeros((len(h), ITEMS), np.float32), cases, repeated) == []
