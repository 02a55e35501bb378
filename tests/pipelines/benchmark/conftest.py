"""Fixtures of the benchmarks' small world."""

from pathlib import Path

import pytest
from circles import write_world

from pipelines.benchmark.base import problem


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A folder with interactions, texts and a published split."""
    return write_world(tmp_path_factory.mktemp("worlds") / "circles", split=True)


@pytest.fixture(scope="session")
def prepared(world, tmp_path_factory) -> Path:
    """The world under the protocol setrec, texts as vectors of words alone."""
    out = tmp_path_factory.mktemp("prepared") / "problem"
    problem.prepare(world, "setrec", out, None)
    return out
