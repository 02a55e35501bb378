"""The nightly loop: ingest, tokenise, train, evaluate, gate, export, audit, release; each only if something changed.

``ROOT/run`` is an ordinary run. Training starts from the weights of the last release if that has a model of the same
shape. A newer release alone does not cause training to run again.

This module does not import torch or Ray before a step runs, so a night without changes ends within a second.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common import cluster, fingerprints
from pipelines.common.locks import exclusive
from pipelines.common.run_directory import PREPARED, Run
from pipelines.nightly import events, release_store
from pipelines.nightly.steps import HeldBackError, NightlyStep, Plain, Steps
from setrec.atomic import atomic_file
from setrec.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.config.job import JobConfig

NAMES = ("ingest", "tokenise", "train", "evaluate", "gate", "export", "audit", "release")
"""The steps, in order."""
LOCK = "lock.json"
SHAPE = ("model", "encoder", "structural", "sasrec")
"""Sections that determine whether the last release's weights fit."""


def run(
    config: Path,
    root: Path,
    overrides: Sequence[str] = (),
    *,
    first: str | None = None,
    force: bool = False,
    cold: bool = False,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ended: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run one night under ``root``; return the names of the steps that ran, and the release in use.

    ``first``: run this step and those after it in any case; ``force``: all; ``cold``: train from random weights.
    ``ended`` is called when a step has ended.

    Raises:
        HeldBackError: gate, audit or endpoint refuse the release; ``run/gate.json`` has the reason, the last one stays.
        ConfigError, DataError: as the steps raise them, or another run of ``root`` is under way.
    """
    overrides = cluster.take_address(overrides)
    with exclusive(root / LOCK):
        code = fingerprints.of_code()
        plain = _resolved(config, overrides, root, code)
        night = Night(root, config, tuple(overrides), plain, cold, say)
        steps = Steps(root, night.steps(), _what_counts(plain), code, say, ended)
        try:
            with night.run.job():
                ran = steps.execute(first, force=force)
        except HeldBackError as error:
            events.hold_back(root, steps.at, str(error), error.what)
            raise
        events.clear(root)
        last = release_store.current(root)
        if not ran:
            say("Nothing has changed, nothing was done.")
        return {"ran": ran, "release": None if last is None else last[0]}


@dataclass
class Night:
    """The steps of one night, over one root and one configuration."""

    root: Path
    path: Path
    overrides: tuple[str, ...]
    plain: Plain
    cold: bool
    say: Callable[[str], None]

    @property
    def run(self) -> Run:
        """Return the run that the steps write."""
        return Run(self.root / "run")

    @cached_property
    def config(self) -> JobConfig:
        """Return the configuration, read when the first step needs it."""
        from pipelines.config.job import load_config

        return load_config(self.path, list(self.overrides))

    def steps(self) -> tuple[NightlyStep, ...]:
        """Return the steps, in order."""
        data, encoder, structural = self.plain["data"], self.plain["encoder"], self.plain["structural"]
        features = [name for name, made in (("text", encoder["path"]), ("structural", structural["enabled"])) if made]
        tables = tuple(f"run/features/{name}.safetensors" for name in features)
        tables += ("run/encoder",) if encoder["finetune"]["epochs"] else ()
        trained = ("run/model",)
        given = _paths(self.plain["model"]["backbone"]["pretrained"], self.plain["warm_start"])
        return (
            NightlyStep("ingest", self._ingest, ("run/data",), ("data",), _tables(data)),
            NightlyStep(
                "tokenise", self._tokenise, tables, ("encoder", "structural"),
                _paths(encoder["path"], structural["triples"], structural["links"]), ("ingest",),
            ),
            NightlyStep(
                "train", self._train, trained, ("sasrec", "model", "loss", "training", "warm_start"), given,
                ("ingest", "tokenise"),
            ),
            NightlyStep(
                "evaluate", self._evaluate, ("run/metrics.json", "run/per_user.parquet", "run/scorer.json"),
                ("evaluation",), (), ("ingest", "train"),
            ),
            NightlyStep("gate", self._gate, ("run/gate.json",), ("gate",), (), ("evaluate",)),
            NightlyStep(
                "export", self._export, ("run/bundle",), ("retriever",), _paths(encoder["path"]),
                ("ingest", "train", "evaluate", "gate"),
            ),
            NightlyStep("audit", self._audit, ("run/audit.json",), (), (), ("export",)),
            NightlyStep("release", self._release, self._released, ("release",), (), ("audit", "export")),
        )  # fmt: skip

    @property
    def _released(self) -> tuple[str, ...]:
        """Return the outputs of a release, so that a removed release is restored."""
        folder = self._releases[0]
        name = folder.relative_to(self.root) if folder.is_relative_to(self.root) else folder
        return release_store.POINTER, release_store.RECORD, f"{name}/current"

    @property
    def _releases(self) -> tuple[Path, str | None]:
        """Return the folder of releases, and the URI of its copy in a store."""
        given = self.plain["release"]["folder"]
        store = given if given is not None and "://" in given else None
        return (self.root / "releases" if given is None or store else Path(given)), store

    def _ingest(self, again: bool) -> None:
        from pipelines.features import preparation

        preparation.ingest_data(self.run, self.config)

    def _tokenise(self, again: bool) -> None:
        from pipelines.features import preparation

        preparation.tokenise(self.run, self._started if self.config.encoder.finetune.epochs else self.config)

    def _train(self, again: bool) -> None:
        from pipelines.jobs import stages
        from pipelines.training.worker import store_of

        self._require_volume()
        if not again:  # checkpoints there belong to other inputs, and must not be resumed
            self.run.clear(keep=PREPARED)
            (self.run.features / "collaborative.safetensors").unlink(missing_ok=True)
            for refit in (False, True):
                store_of(self.run, self.config, refit=refit).clear()
        stages.fit(self.run, self._started, resume=again)

    def _evaluate(self, again: bool) -> None:
        from pipelines.jobs import stages

        stages.assess(self.run, self.config)

    def _gate(self, again: bool) -> None:
        from pipelines.nightly import release_gate

        s, last = self.config.evaluation, release_store.current(self.root)
        self.run.claim("gate.json", "audit.json")
        verdict = release_gate.judge(
            self.run.root / "per_user.parquet",
            None if last is None else self._last_ranked(*last),
            None if last is None else last[0],
            self.config.gate,
            resamples=s.resamples,
            seed=s.seed,
        )
        self.run.write_json("gate.json", verdict.record())
        self.run.log("gate", **verdict.record())
        model = self.run.hash_of(self.run.model)
        if not verdict.passed and not events.approved(self.root, model):
            raise HeldBackError(f"held back: {verdict.reason}", model)
        self.say(f"gate: {'passed' if verdict.passed else 'approved'}: {verdict.reason}")

    def _last_ranked(self, name: str, record: Path) -> Path:
        """Return the metrics per user of the last release: on today's test items if it has today's shape, else as
        recorded."""
        from pipelines.nightly.last_release import rank_again

        encoders = {self.run.hash_of(folder / "encoder") for folder in (self.run.root, record)}
        if (section := self._other_shape(record) or ("encoder" if len(encoders) > 1 else None)) is None:
            return rank_again(self.run, self.config, record)
        self.say(f"gate: {name} is compared by its recorded metrics, because {section} has changed")
        return record / "per_user.parquet"

    def _require_volume(self) -> None:
        """Hold back if there is far less data than for the last release."""
        last, share = release_store.current(self.root), self.config.gate.volume
        before = (None if last is None else Run(last[1]).read_json("data.json")) or {}
        now = self.run.read_json("data.json") or {}
        for name in ("users", "items", "interactions") if before and now else ():
            if now[name] < share * before[name]:
                data = fingerprints.of_value(now)
                if events.approved(self.root, data):
                    self.say(f"train: approved: {now[name]} {name}")
                    return
                raise HeldBackError(
                    f"held back: {now[name]} {name}, {before[name]} for {last[0] if last else ''}: less than "
                    f"gate.volume, {share:g} of it", data,
                )  # fmt: skip

    def _export(self, again: bool) -> None:
        from pipelines.jobs.export import export

        export(self.run, self.config)

    def _audit(self, again: bool) -> None:
        from pipelines.nightly.bundle_checks import audit

        self.run.write_json("audit.json", audit(self.run.bundle))

    def _release(self, again: bool) -> None:
        before, (folder, store) = release_store.current(self.root), self._releases
        found = release_store.release(
            self.run.bundle, self.run.root, self.root, folder, self.config.release.keep, store=store
        )
        self.run.log("released", **found)
        if before is None or found["release"] != before[0]:
            events.note(self.root, "released", release=found["release"])
        self.say(f"release: {found['release']} is current")

    @cached_property
    def _started(self) -> JobConfig:
        """Return the configuration with the source of a warm start."""
        return self.config.model_copy(update={"warm_start": self._beginning()})

    def _beginning(self) -> Path | None:
        """Return the source of a warm start: as configured, else the last release if it fits."""
        last = release_store.current(self.root)
        if self.cold or self.plain["warm_start"] is not None or last is None:
            return None if self.cold else self.config.warm_start
        if (section := self._other_shape(last[1])) is not None:
            self.say(f"train: starts from random weights, because {section} differs from {last[0]}")
            return None
        self.say(f"train: starts from {last[0]}")
        return last[1].resolve()

    def _other_shape(self, record: Path) -> str | None:
        """Return the first section by which the model of a record differs from today's."""
        from pipelines.config.job import load_config

        both = load_config(record / "config.yaml"), self.config
        before, now = (_what_counts(config.model_dump(mode="json")) for config in both)
        return next((section for section in SHAPE if before[section] != now[section]), None)


_HOW = {
    "data": ("memory_limit", "scratch", "scratch_limit"),
    "encoder": ("actors", "batch_size"),
    "structural": ("block",),
    "training": ("checkpoint_steps", "checkpoint_minutes"),
    "evaluation": ("actors", "batch_size"),
}


def _what_counts(plain: Plain) -> Plain:
    """Return the configuration without settings that do not affect the output of a step."""
    return {
        name: {key: value for key, value in part.items() if key not in _HOW.get(name, ())} if name in _HOW else part
        for name, part in plain.items()
    }


def _resolved(config: Path, overrides: Sequence[str], root: Path, code: str) -> Plain:
    """Return the configuration as plain values, from the last night if file, overrides and code are unchanged.

    Validating a configuration requires the libraries of its sections, which take seconds to import.
    """
    try:
        asked = fingerprints.of_value([config.read_text(encoding="utf-8"), list(overrides), code])
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    memory = root / "state" / "config.json"
    try:
        known = json.loads(memory.read_text())
        if known["asked"] == asked:
            return dict(known["plain"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    from pipelines.config.job import load_config

    plain = load_config(config, list(overrides), agree=True).model_dump(mode="json")
    with atomic_file(memory) as temporary:
        temporary.write_text(json.dumps({"asked": asked, "plain": plain}))
    return plain


def _tables(data: dict[str, Any]) -> tuple[str, ...]:
    """Return the locations of the input's tables; for a pattern, the existing files."""
    tables = [table if isinstance(table, list) else [table] for table in (data["interactions"], data["items"])]
    given = [place for table in tables for place in table if place is not None]
    return _paths(*(file for place in given for file in (sorted(glob(place, recursive=True)) or [place])))


def _paths(*given: str | None) -> tuple[str, ...]:
    """Return the paths that are given and exist. A hub id is not a path; its name is part of the configuration."""
    return tuple(path for path in given if path is not None and ("://" in path or Path(path).exists()))
