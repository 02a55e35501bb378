"""The memory is kept where it helps more than chance would."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.benchmark import remembered
from pipelines.benchmark.remembered import GRID
from setrec import ranking
from setrec.ragged import Ragged

USERS = 400
PROBLEM = SimpleNamespace(items=USERS, goal="kept")


class Votes:
    """User u has read item u, and item u + 1 follows. Scores find it for even users alone; a memory votes for it for
    the first odd users, whom it ``helps``, and against it for the first even ones, whom it ``harms``."""

    def __init__(self, helps, harms):
        self.helps, self.harms = helps, harms

    def terms(self, history):
        user = history.values
        rows, truth, odd = np.arange(len(user)), (user + 1) % USERS, user % 2 == 1
        scores, votes = np.zeros((2, len(user), USERS), np.float32)
        scores[rows, truth] = np.where(odd, -1.0, 1.0)
        votes[rows, truth] = np.where(odd, user // 2 < self.helps, -1.0 * (user // 2 < self.harms))
        return {"scores": scores, **{str(one.temperature): votes for one in GRID}}


def chosen(**votes):
    user = np.arange(USERS)
    follows = Ragged.of((user[:, None] + 1) % USERS)
    return remembered._choose([Votes(**votes)], [ranking.Cases(user, Ragged.of(user[:, None]), follows)], PROBLEM)


def test_a_memory_that_knows_is_kept():
    number, tried = chosen(helps=150, harms=0)
    assert GRID[number].weight > 0
    assert tried[number]["ndcg@10"] == pytest.approx(max(one["ndcg@10"] for one in tried))


def test_a_gain_within_a_standard_error_is_no_gain():
    number, tried = chosen(helps=24, harms=20)
    assert max(one["ndcg@10"] for one in tried) > tried[0]["ndcg@10"], "it would be taken for its mean"
    assert GRID[number].weight == 0
