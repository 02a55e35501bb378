"""Scores of rounded codes are within their bound, so that exact answers follow."""

import numpy as np
import pytest

from serving.engine.ranking.near import near_best
from setrec.scoring.kernels.scan import RoundedCodes


@pytest.mark.parametrize("width", [1, 7, 320, 1200])
def test_scores_of_rounded_codes_are_within_the_bound_of_their_error(width):
    rng = np.random.default_rng(width)
    codes = (rng.standard_t(3, size=(5000, width)) * np.linspace(0.01, 30, width)).astype(np.float32)
    codes[::7], codes[:, :1] = 0, codes[:, :1] * (width == 1)
    users = rng.normal(size=(3, width)).astype(np.float32)
    users[2] = 0
    rounded, scores = RoundedCodes.of(codes), np.empty((3, 5004), np.float32)
    rounded.scores(users, scores)
    exact = users.astype(np.float64) @ codes.T.astype(np.float64)
    errors = np.abs(scores[:, :5000] - exact).max(axis=1)
    assert (errors <= rounded.errors(users)).all()
    assert (errors[:2] > 0).all()
    assert errors[2] == 0


def test_rows_near_the_best_are_those_that_may_be_answered_within_the_slack_of_the_kth():
    scores = np.array([5.0, 1.0, 4.0, 4.5, -np.inf, 3.9], np.float32)
    left = np.array([1, 1, 1, 0, 1, 1], bool)
    assert near_best(scores, left, 2, 0.2).tolist() == [0, 2, 5]
    assert near_best(scores, left, 9, 0.2).tolist() == [0, 1, 2, 4, 5]
    assert near_best(scores, left, 0, 0.2).tolist() == []
