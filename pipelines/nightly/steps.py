"""Steps that run only if something changed, and continue after a kill.

A step declares its inputs (files, sections of the configuration, results of earlier steps) and its outputs. When it has
ended, the hashes of both are written to ``state/STEP.json``; while they are unchanged, the step is skipped. Nothing is
written before, so a killed step runs again; it receives this information and may resume.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.common.fingerprints import ABSENT, Hashes, changed, of_value
from setrec.atomic import atomic_file
from setrec.errors import ConfigError, SetRecError

Plain = Mapping[str, Any]
"""The resolved configuration as plain values, by section."""


class HeldBackError(SetRecError):
    """A model that must not be released; the previous one stays in use. ``what``: the hash for its approval, ``None``
    if it cannot be approved."""

    def __init__(self, reason: str, what: str | None = None) -> None:
        super().__init__(reason)
        self.what = what


@dataclass(frozen=True)
class NightlyStep:
    """``work`` is called with whether it continues an unfinished attempt with the same inputs.

    ``outputs``: its files, relative to the root. ``sections``: the sections of the configuration it depends on, without
    the number of workers. ``inputs``: external files, folders and URIs. ``after``: steps whose outputs it reads.
    """

    name: str
    work: Callable[[bool], None]
    outputs: tuple[str, ...]
    sections: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """The content of ``state/STEP.json``: hashes of all inputs and outputs by name."""

    step: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    seconds: float = 0.0
    finished: str = ""


@dataclass
class Steps:
    """The steps over one root folder, in order."""

    root: Path
    steps: Sequence[NightlyStep]
    plain: Plain
    code: str
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
    ended: Callable[[], None] = lambda: None
    ran: list[str] = field(default_factory=list)
    at: str = ""

    def execute(self, first: str | None = None, *, force: bool = False) -> list[str]:
        """Run the necessary steps, in order; return their names. ``first``: run this step and all after it in any case;
        ``force``: all.

        Raises:
            ConfigError: there is no step ``first``.
            SetRecError: raised by a step; completed steps stay complete.
        """
        if first is not None and first not in (names := [step.name for step in self.steps]):
            raise ConfigError(f"there is no step '{first}'; the steps are {', '.join(names)}")
        hashes, forced = Hashes(self.root / "state" / "hashes.json"), force
        try:
            for step in self.steps:
                forced = forced or step.name == first
                inputs = self._inputs(step, hashes)
                reason = "it was requested" if forced else self._reason(step, inputs, hashes)
                if reason is None:
                    continue
                self.say(f"{step.name}: runs, because {reason}")
                self._run(step, inputs, hashes)
        finally:
            hashes.save()
        return self.ran

    def done(self, name: str) -> Done | None:
        """Return the record of a step's last success."""
        try:
            return Done(**json.loads(self._file(name).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _run(self, step: NightlyStep, inputs: dict[str, str], hashes: Hashes) -> None:
        begun = self._file(f"{step.name}.begun")
        again = begun.is_file() and begun.read_text() == json.dumps(inputs)
        with atomic_file(begun) as temporary:
            temporary.write_text(json.dumps(inputs))
        began, self.at = time.perf_counter(), step.name
        step.work(again)
        outputs = {name: hashes.of_path(self.root / name) for name in step.outputs}
        seconds, finished = round(time.perf_counter() - began, 2), datetime.now(UTC).isoformat(timespec="seconds")
        with atomic_file(self._file(step.name)) as temporary:
            temporary.write_text(json.dumps(asdict(Done(step.name, inputs, outputs, seconds, finished)), indent=2))
        begun.unlink()
        self.ran.append(step.name)
        self.ended()

    def _inputs(self, step: NightlyStep, hashes: Hashes) -> dict[str, str]:
        chosen = {section: self.plain.get(section) for section in step.sections}
        found = {"the code": self.code, "the configuration": of_value(chosen)}
        found |= {_shown(path): hashes.of_path(path) for path in step.inputs}
        for name in step.after:
            done = self.done(name)
            found[f"what {name} made"] = ABSENT if done is None else of_value(done.outputs)
        return found

    def _reason(self, step: NightlyStep, inputs: dict[str, str], hashes: Hashes) -> str | None:
        """Return why the step has to run, or ``None``."""
        done = self.done(step.name)
        if done is None:
            return "it has not ended before"
        if (name := changed(done.inputs, inputs)) is not None:
            return f"{name} changed"
        for name in step.outputs:
            if hashes.of_path(self.root / name) != done.outputs.get(name):
                return f"{name} is missing or not what it left"
        return None

    def _file(self, name: str) -> Path:
        return self.root / "state" / f"{name}.json"


def _shown(path: str) -> str:
    """Return a URI without its keys."""
    if "://" not in path:
        return path
    from pipelines.common.storage import shown

    return shown(path)
