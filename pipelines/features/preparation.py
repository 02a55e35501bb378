"""Preparation of a run: read, check and split data; encode texts; compute positions of items in their graph."""

from __future__ import annotations

from typing import Any

from pipelines.common.progress import bar, console
from pipelines.common.run_directory import FOLLOWING, PREPARED, TRAINED, Run
from pipelines.config.job import JobConfig
from pipelines.features import item_features
from pipelines.features.encode_texts import encode_texts
from pipelines.features.tune_encoder import tune_encoder
from pipelines.ingest import ingest
from setrec.errors import ConfigError

SUMMARY = (
    "rows", "rejected", "rejected_reasons", "dropped", "users", "items", "interactions", "splits", "cold_items",
    "cold_item_share", "items_without_text",
)  # fmt: skip
"""Keys of ``data.json`` that `prepare` prints."""
SECTIONS = ("data", "encoder", "structural")
"""Sections of the configuration that determine the output of `prepare`."""


def seeds(config: JobConfig) -> dict[str, int]:
    """Return the seed of every section that has one."""
    sections = config.model_dump(mode="json")
    return {name: part["seed"] for name, part in sections.items() if isinstance(part, dict) and "seed" in part}


def keep_configuration(run: Run, config: JobConfig) -> None:
    """Write the configuration and its seeds into the run."""
    config.save(run.config)
    run.note(seeds=seeds(config))


def require_force(run: Run, force: bool) -> None:
    """Require ``force`` to prepare a trained run again, which removes the model.

    Raises:
        ConfigError: the run is trained and ``force`` is false; the message lists what would be removed.
    """
    there = [name for name in (*TRAINED, *FOLLOWING, "trials.json", "ablation") if (run.root / name).exists()]
    if there and not force:
        raise ConfigError(
            f"{run.root} holds a trained run: preparing it again removes {', '.join(there)}; --force does so, "
            "another --run keeps it"
        )


def prepare(run: Run, config: JobConfig) -> dict[str, Any]:
    """Ingest, split, encode texts, compute positions; the run's folder is cleared once the data has been accepted."""
    summary = ingest_data(run, config)
    tokenise(run, config)
    return summary


def ingest_data(run: Run, config: JobConfig) -> dict[str, Any]:
    """Ingest and split; the run's folder is cleared once the data has been accepted."""
    run.claim(*PREPARED)
    with run.timed("ingest"), bar("Ingest and split") as progress:
        summary = ingest.ingest(config.data, run.data, progress=progress, address=config.cluster.address)
        # A model of other data must not be mistaken for one of this data.
        run.clear(keep=("data", "logs", "environment.json"))
        run.set_unfinished(False)
        progress.update(
            1, 1, f"{summary['users']} users, {summary['items']} items, {summary['interactions']} interactions"
        )
    for name, use in (
        ("valid", "validation: training will refuse this data"),
        ("test", "test: nothing to evaluate on"),
    ):
        if not summary["splits"][name]:
            console.print(f"[yellow]![/yellow] The split leaves no interaction for {use}.")
    run.write_json("data.json", summary)
    run.log("ingested", **{key: summary[key] for key in ("users", "items", "interactions")})
    keep_configuration(run, config)
    return summary


def short_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of an ingest that `prepare` prints."""
    return {key: summary[key] for key in SUMMARY if summary.get(key) not in (None, {})}


def tokenise(run: Run, config: JobConfig) -> None:
    """Encode item texts; if configured, fine-tune the sentence encoder before, and compute positions of items."""
    run.require(run.data, "prepare")
    keep_configuration(run, config)
    with run.timed("encode"):
        tune_encoder(run, config)
        encode_texts(run, config)
        item_features.encode_words(run, config)
    if config.structural.enabled:
        with run.timed("structure"):
            item_features.place_items(run, config)
