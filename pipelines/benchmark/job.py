"""The steps of `setrec benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pipelines.benchmark import registry, report
from pipelines.benchmark.base import problem
from pipelines.benchmark.base.problem import Protocol
from pipelines.benchmark.run import Benchmark, BenchmarkSettings
from pipelines.common.run_directory import Run
from pipelines.jobs.datasets import packaged_encoder
from setrec.errors import ConfigError, DataError


def benchmark(
    data: Path,
    protocol: Protocol,
    run: Run,
    settings: BenchmarkSettings,
    *,
    encoder: str | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """Prepare ``data`` under a protocol, fit every system that is not fitted yet, write table and report.

    ``encoder``: directory or hub id of the sentence encoder; ``None`` uses the packaged one, if it is installed.

    Raises:
        ConfigError: the run holds a benchmark of other data or under another protocol; a requested system does not
            exist; or a fit failed.
        DataError: the data cannot be used.
    """
    for name in settings.systems or ():
        registry.system(name)  # report a wrong name before texts are encoded for minutes
    place = run.root / "problem"
    if not problem.is_prepared(place):
        problem.prepare(data, protocol, place, encoder or _packaged())
    known = problem.load(place)
    if (known.name, known.protocol, known.hash) != (data.name, protocol, problem.hash_of(data, protocol)):
        raise ConfigError(f"{run.root} holds a benchmark of {known.name} under {known.protocol}: name another --run")
    results = Benchmark(run.root, settings, address).execute()
    report.write(run, results)
    return results


def protocol_of(name: str) -> Protocol:
    """Return the protocol called ``name``.

    Raises:
        ConfigError: unknown protocol.
    """
    names: tuple[Protocol, ...] = get_args(Protocol)
    for known in names:
        if name == known:
            return known
    raise ConfigError(f"unknown protocol '{name}' (known: {', '.join(names)})")


def _packaged() -> str | None:
    try:
        return str(packaged_encoder())
    except DataError:
        return None
