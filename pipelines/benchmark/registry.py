"""The registry of systems: opponents, SETRec as published, our configurations and the ablations."""

from __future__ import annotations

from collections.abc import Container, Sequence

from pipelines import recipes
from pipelines.benchmark.base.problem import Problem
from pipelines.benchmark.base.system import System
from pipelines.benchmark.opponents import baselines
from pipelines.benchmark.opponents.setrec_system import SetRecSystem, WithoutModel
from pipelines.benchmark.opponents.tiger import Tiger
from setrec.errors import ConfigError

OURS = "SETRec, ours"
OURS_T5 = "SETRec, ours (T5)"
PUBLISHED = "SETRec, published (T5)"
PUBLISHED_QWEN = "SETRec, published (Qwen)"

OUR_TRIES = (
    {"model": {"id_dropout": 0.4, "dropout": 0.3}},
    {"model": {"id_dropout": 0.1}, "training": {"learning_rate": 1e-3}},
    {"model": {"dropout": 0.4}, "training": {"weight_decay": 0.1}},
)
PUBLISHED_TRIES = (
    {"training": {"learning_rate": 2e-3}},
    {"model": {"semantic_tokens": 6}},
    {"model": {"semantic_tokens": 2}},
)
READ_TEXTS = {"TIGER", "SASRec + text"}
"""Systems that require texts."""


def _compared() -> list[System]:
    return [
        *baselines.OPPONENTS,
        Tiger(),
        WithoutModel(),
        SetRecSystem(PUBLISHED, recipes.load("published-t5"), PUBLISHED_TRIES),
        SetRecSystem(PUBLISHED_QWEN, recipes.load("published-qwen3"), PUBLISHED_TRIES),
        SetRecSystem(OURS_T5, recipes.load("ours-t5"), OUR_TRIES),
        SetRecSystem(OURS, {}, OUR_TRIES),
    ]


def _ablation() -> list[System]:
    rows: list[System] = []
    for family, base in (("ours", {}), ("ours (T5)", recipes.load("ours-t5"))):
        for name in recipes.ablations():
            title = name.removeprefix("ablation/").replace("-", " ")
            rows.append(SetRecSystem(f"{family}: {title}", recipes.merged(base, recipes.load(name))))
    return rows


COMPARED = {one.name: one for one in _compared()}
"""The systems of the table, by name."""
ABLATION = {one.name: one for one in _ablation()}
"""The rows of the ablation, by name."""


def system(name: str) -> System:
    """Return a system by its name.

    Raises:
        ConfigError: unknown name; the message lists the known ones.
    """
    every = COMPARED | ABLATION
    if name not in every:
        raise ConfigError(f"unknown system '{name}' (known: {'; '.join(every)})")
    return every[name]


def names(problem: Problem, requested: Sequence[str] | None, *, ablation: bool) -> list[str]:
    """Return the names of the ``requested`` systems, or of all that apply to the problem.

    Raises:
        ConfigError: a requested system is unknown.
    """
    if requested is not None:
        return [system(name).name for name in requested]
    every = [*COMPARED, *(ABLATION if ablation else ())]
    return [name for name in every if problem.text is not None or name not in READ_TEXTS]


def ours(present: Container[str]) -> str | None:
    """Return the system among ``present`` that the others are compared with."""
    return next((name for name in (OURS, OURS_T5) if name in present), None)
