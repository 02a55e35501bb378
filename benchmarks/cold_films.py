"""MovieLens-100K without some of its films: what is trained knows nothing of them, and what is asked is about them.

Two sets of films are taken out of the catalogue, out of every history and out of the training run altogether: the
``valid`` films, on which choices are made, and the ``test`` films, on which nothing is chosen. Users' histories are
split as always (last film tests, the one before validates) *before* the films go, so the questions are real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.common.cluster import ray_session
from pipelines.common.run_directory import Run
from pipelines.config.job import JobConfig
from pipelines.data import directory
from pipelines.data.directory import write_histories
from pipelines.features import preparation
from pipelines.ingest import ingest
from pipelines.jobs import stages
from pipelines.jobs.demo import demo_config
from setrec.data.catalog import TEST, Catalog, Histories
from setrec.ragged import Ragged

SETTINGS = ("cluster.threads=1", "cluster.workers=1")
VALID_SHARE, TEST_SHARE, SEED = 0.1, 0.2, 0


@dataclass(frozen=True)
class Question:
    """A user's films before, as ids and oldest first, and the film that came next, one that training never saw."""

    user_id: str
    history: tuple[str, ...]
    truth: str


@dataclass(frozen=True)
class ColdFilms:
    """The whole data, and which of its films are held out: bool (I,) each."""

    catalog: Catalog
    histories: Histories
    valid: np.ndarray
    test: np.ndarray

    @classmethod
    def load(cls, run: Run) -> ColdFilms:
        """What :func:`prepare` left in ``run``."""
        catalog, histories = directory.load(_whole(run))
        order = np.random.default_rng(SEED).permutation(np.flatnonzero(histories.trained(len(catalog))))
        first, second = round(VALID_SHARE * len(order)), round((VALID_SHARE + TEST_SHARE) * len(order))
        rows = np.arange(len(catalog))
        return cls(catalog, histories, np.isin(rows, order[:first]), np.isin(rows, order[first:second]))

    @property
    def known(self) -> np.ndarray:
        """Films that take part in training, bool (I,)."""
        return ~(self.valid | self.test)

    def warm(self) -> tuple[Catalog, Histories]:
        """Catalogue and histories as if the other films had never been."""
        row_of, known = np.cumsum(self.known) - 1, self.known[self.histories.items.values]
        kept = self.histories.items.where(known)
        items = Ragged(row_of[kept.values].astype(np.int32), kept.offsets)
        return self.catalog.take(np.flatnonzero(self.known)), Histories(
            self.histories.user_ids, items, self.histories.splits[known]
        )

    def test_questions(self) -> list[Question]:
        """Users whose last film is one of the ``test`` films."""
        return self._questions(self.test, (self.histories.splits == TEST))

    def valid_questions(self, count: int) -> list[Question]:
        """``count`` of the times before the last film when a user's next was one of the ``valid`` films."""
        every = self._questions(self.valid, self.histories.splits < TEST)
        chosen = np.random.default_rng(SEED).permutation(len(every))[:count]
        return [every[at] for at in np.sort(chosen)]

    def _questions(self, films: np.ndarray, asked: np.ndarray) -> list[Question]:
        items, ids = self.histories.items, self.catalog.item_ids
        found = []
        for at in np.flatnonzero(films[items.values] & asked):
            user = int(np.searchsorted(items.offsets, at, side="right")) - 1
            before = items.values[items.offsets[user] : at]
            if self.known[before].any():
                history = tuple(ids[row] for row in before)
                found.append(Question(self.histories.user_ids[user], history, ids[items.values[at]]))
        return found


def prepare(run: Run, config: JobConfig) -> ColdFilms:
    """Ingest everything, then leave a data directory without the held-out films for training."""
    run.root.mkdir(parents=True, exist_ok=True)
    run.claim("whole", "data")
    ingest.ingest(config.data, _whole(run))
    films = ColdFilms.load(run)
    catalog, histories = films.warm()
    run.data.mkdir(exist_ok=True)
    catalog.save(run.data / "items.parquet")
    write_histories(run.data / "histories", [histories])
    return films


def train(run: Run) -> None:
    """Prepare, train as the demonstration does, search the weights of the score on validation."""
    torch.set_num_threads(1)
    config = demo_config(8000, list(SETTINGS))
    run.clear()
    prepare(run, config)
    preparation.tokenise(run, config)
    with ray_session(cpus=2):
        stages.fit(run, config)
        stages.assess(run, config)


def _whole(run: Run) -> Path:
    return run.root / "whole"
