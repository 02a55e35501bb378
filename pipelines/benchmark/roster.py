"""Who takes part: the opponents, SETRec as published, ours, and the steps between the two."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from pipelines.benchmark import opponents
from pipelines.benchmark.entrant import Entrant
from pipelines.benchmark.evidence_alone import EvidenceAlone
from pipelines.benchmark.problem import Problem
from pipelines.benchmark.recommender import PUBLISHED, Recommender, RecommenderSettings
from pipelines.benchmark.tiger import Tiger
from setrec.errors import ConfigError

OURS = "SETRec, ours"
OURS_T5 = "SETRec, ours (T5)"
FAITHFUL = "SETRec, published (T5)"
FAITHFUL_QWEN = "SETRec, published (Qwen)"

OUR_TRIES = (
    {"forget": 0.4, "dropout": 0.3},
    {"forget": 0.1, "learning_rate": 1e-3},
    {"dropout": 0.4, "weight_decay": 0.1},
)
PUBLISHED_TRIES = ({"learning_rate": 2e-3}, {"semantic_tokens": 6}, {"semantic_tokens": 2})

STEPS: dict[str, dict[str, Any]] = {
    "fused loss": {"loss": {"slots": 0.0, "fused": 1.0, "alpha": 0.0, "negatives": "all"}},
    "untrained rows no negatives": {"loss": {"slots": 1.0, "fused": 0.0, "alpha": 0.7, "negatives": "trained"}},
    "table trained jointly": {"trainable_table": True},
    "one fused input token": {"history": "fused"},
    "queries from the last item": {"ask": "last"},
    "word vectors": {"text": "all"},
    "codes carried": {"carry": (0.0, 0.8, 1.0), "returns": True},
    "no autoencoder": {"loss": {"slots": 1.0, "fused": 0.0, "alpha": 0.0, "negatives": "all"}},
}
"""Each of our changes alone, on the published design."""
SAMPLED: dict[str, Any] = RecommenderSettings().loss.model_dump(include={"sampled_above", "samples"})
WITHOUT: dict[str, dict[str, Any]] = {
    "without forgetting": {"forget": 0.0},
    "without word vectors": {"text": "sentence"},
    "without text": {"semantic_tokens": 0, "text_slot": 0},
    "without a slot of the texts themselves": {"text_slot": 0},
    "all numbers of the texts in their slot": {"text_slot": 1024},
    "without carrying": {"carry": (), "returns": False},
    "texts themselves, no layers": {"hidden": (), "text_slot": 0},
    "slots' own losses": {"loss": {**SAMPLED, "slots": 1.0, "fused": 0.0, "alpha": 0.0}},
    "loss of all slots and the fused": {"loss": {**SAMPLED, "slots": 0.2, "fused": 1.0, "alpha": 0.0}},
    "with the autoencoder": {"loss": {**SAMPLED, "slots": 0.0, "fused": 1.0, "alpha": 0.5}},
    "full softmax": {"loss": {"slots": 0.0, "fused": 1.0, "alpha": 0.0}},
    "frozen table of SASRec": {"table": "sasrec", "trainable_table": False, "forget": 0.0},
    "begun with SASRec's table": {"table": "sasrec"},
    "a token per slot read": {"history": "set", "ask": "last"},
    "queries from the last item": {"ask": "last"},
    "learned queries alone": {"ask": "learned"},
    "N = 1": {"semantic_tokens": 1},
    "N = 4": {"semantic_tokens": 4},
    "d = 256": {"size": "small"},
}
"""Ours without one of its changes, or with another size."""
T5: dict[str, Any] = {"family": "t5", "ask": "last"}
"""An item's own token answers behind a causal backbone alone; T5's queries start from the last item."""
READ_TEXTS = {"TIGER", "SASRec + text"}
"""Systems that are nothing without texts."""


def _compared() -> list[Entrant]:
    ours = RecommenderSettings()
    return [
        *opponents.OPPONENTS,
        Tiger(),
        EvidenceAlone(),
        Recommender(FAITHFUL, PUBLISHED, PUBLISHED_TRIES, family="t5"),
        Recommender(FAITHFUL_QWEN, PUBLISHED, PUBLISHED_TRIES, family="qwen3"),
        Recommender(OURS_T5, ours, OUR_TRIES, **T5),
        Recommender(OURS, ours, OUR_TRIES),
    ]


def _ablation() -> list[Entrant]:
    ours = RecommenderSettings()
    added: list[Entrant] = [
        Recommender(f"published ({shown}) + {name}", PUBLISHED, family=family, **step)
        for shown, family in (("Qwen", "qwen3"), ("T5", "t5"))
        for name, step in STEPS.items()
    ]
    return added + [
        Recommender(f"{shown}: {name}", ours, **{**fixed, **change})
        for shown, fixed in (("ours", {}), ("ours (T5)", T5))
        for name, change in WITHOUT.items()
        if {**fixed, **change} != fixed
    ]


COMPARED = {one.name: one for one in _compared()}
"""The systems of the table, by name."""
ABLATION = {one.name: one for one in _ablation()}
"""The rows of the ablation, by name."""


def entrant(name: str) -> Entrant:
    """A system by its name.

    Raises:
        ConfigError: there is none of that name; those there are are named.
    """
    every = COMPARED | ABLATION
    if name not in every:
        raise ConfigError(f"there is no system '{name}'; there are: {'; '.join(every)}")
    return every[name]


def names(problem: Problem, asked: Sequence[str] | None, *, ablation: bool) -> list[str]:
    """The systems that take part: those ``asked`` for, or all that can do the problem.

    Raises:
        ConfigError: one is asked for that there is not.
    """
    if asked is not None:
        return [entrant(name).name for name in asked]
    every = [*COMPARED, *(ABLATION if ablation else ())]
    return [name for name in every if problem.text is not None or name not in READ_TEXTS]


def ours(present: Container[str]) -> str | None:
    """Which of the systems that are ``present`` the others are compared with."""
    return next((name for name in (OURS, OURS_T5) if name in present), None)
