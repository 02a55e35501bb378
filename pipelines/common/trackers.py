"""Curves and metrics for experiment trackers: TensorBoard event files by default, MLflow as an option.

The run's own files remain the record. Trackers receive the same numbers, epoch by epoch, under names without ``@``,
which neither accepts: ``ndcg_at_10``. A tracker that fails is disabled with a line in the run's log, and the job
continues.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from pipelines.common.run_directory import Run, environment
from setrec.errors import ConfigError
from setrec.settings import Settings

FOLDER = "tensorboard"


class TrackingSettings(Settings):
    """Trackers of curves and metrics, in addition to the run's own files.

    ``tensorboard``: event files in the run's ``logs/tensorboard``, a folder per system, some kilobytes each
    (``tensorboard --logdir RUN/logs``). ``mlflow``: URI of a tracking server, or another location that the installed
    MLflow accepts; one MLflow run for each run, in ``experiment``. It needs the package ``mlflow-skinny`` or
    ``mlflow``, and costs a request per epoch.
    """

    tensorboard: bool = True
    mlflow: str | None = None
    experiment: str = "setrec"


class Tracked(Protocol):
    """The part of a run's configuration that trackers read."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def tracking(self) -> TrackingSettings:
        """Where numbers go."""
        ...

    def model_dump(self, *, mode: Literal["json", "python"] | str = "python") -> dict[str, Any]:
        """The plain values."""
        ...


class Tracker(Protocol):
    """Where numbers go."""

    def scalars(self, system: str, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a system at a step, by name."""
        ...

    def close(self) -> None:
        """Write everything that is pending."""
        ...


class Trackers:
    """All trackers of a configuration as one. Their errors do not fail a job."""

    def __init__(self, run: Run, trackers: Sequence[Tracker]) -> None:
        self._run, self._trackers = run, list(trackers)

    def epoch(self, system: str, record: Mapping[str, Any]) -> None:
        """Write an epoch of a training from its record as in curves.jsonl."""
        skipped = ("epoch", "epochs")
        numbers = {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k not in skipped}
        self._scalars(system, int(record["epoch"]), numbers)

    def metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows as in metrics.json: ``test/GROUP/HISTORY/METRIC`` of each system."""
        for system in dict.fromkeys(r["system"] for r in rows):
            own = [r for r in rows if r["system"] == system]
            self._scalars(system, 0, {f"test/{r['group']}/{r['history']}/{r['metric']}": r["value"] for r in own})

    def _scalars(self, system: str, step: int, values: Mapping[str, float]) -> None:
        self._all("scalars", system, step, {name.replace("@", "_at_"): value for name, value in values.items()})

    def close(self) -> None:
        """Write what is pending."""
        self._all("close")

    def _all(self, method: str, *arguments: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # such as a full disk or an unreachable server; training continues
                self._trackers.remove(tracker)
                self._run.log("tracker given up", tracker=type(tracker).__name__, reason=str(error))


@contextmanager
def tracking(run: Run, config: Tracked) -> Iterator[Trackers]:
    """Open the trackers of a run, which are closed when the block ends.

    Raises:
        ConfigError: MLflow is configured and is not installed, or cannot be reached.
    """
    s, found = config.tracking, list[Tracker]()
    if s.tensorboard:
        found.append(TensorBoard(run.root / "logs" / FOLDER, config))
    if s.mlflow is not None:
        found.append(MlFlow(run, config, s.mlflow))
    trackers = Trackers(run, found)
    try:
        yield trackers
    finally:
        trackers.close()


def forget(run: Run) -> None:
    """Remove what earlier trainings of the run wrote; MLflow gets a new run."""
    shutil.rmtree(run.root / "logs" / FOLDER, ignore_errors=True)
    (run.root / "logs" / "mlflow.json").unlink(missing_ok=True)


class TensorBoard:
    """Event files, a folder for each system; the first file of each holds configuration and environment as text.

    If a resumed training repeats epochs, the later ones count.
    """

    def __init__(self, folder: Path, config: Tracked) -> None:
        self._folder, self._config = folder, config
        self._writers: dict[str, Any] = {}

    def scalars(self, system: str, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        writer = self._writers.get(system) or self._open(system, step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def _open(self, system: str, step: int) -> Any:
        from tensorboardX import SummaryWriter

        place = self._folder / system
        first = not place.exists()
        # Step 0 is for the test, which follows the epochs and must not hide them.
        # Files are named by the second; an equal name would overwrite the earlier file.
        writer = SummaryWriter(str(place), purge_step=step or None, filename_suffix=f".{uuid.uuid4().hex[:8]}")
        if first:
            writer.add_text("configuration", _indented(_yaml(self._config)))
            writer.add_text("environment", _indented(yaml.safe_dump(environment(), sort_keys=False)))
        self._writers[system] = writer
        return writer

    def close(self) -> None:
        """See :class:`Tracker`."""
        for writer in self._writers.values():
            writer.close()


class MlFlow:
    """A run of MLflow, recorded in the run's ``logs/mlflow.json``, so that evaluation continues that of the
    training."""

    def __init__(self, run: Run, config: Tracked, uri: str) -> None:
        try:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ConfigError("tracking.mlflow needs the package mlflow-skinny (pip install mlflow-skinny)") from error
        self._metric = Metric
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._id = self._known(run, uri) or self._begin(run, config, uri)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(f"tracking.mlflow: {uri} cannot be used: {lines[0]}") from error

    def scalars(self, system: str, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        now = int(1000 * time.time())
        found = [self._metric(f"{system}/{name}", v, now, step) for name, v in values.items()]
        for start in range(0, len(found), 1000):  # the maximum of MLflow per request
            self._client.log_batch(self._id, metrics=found[start : start + 1000])

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._client.set_terminated(self._id)

    def _known(self, run: Run, uri: str) -> str | None:
        entry = run.read_json("logs/mlflow.json") or {}
        return entry["run_id"] if entry.get("uri") == uri else None

    def _begin(self, run: Run, config: Tracked, uri: str) -> str:
        name, client = config.tracking.experiment, self._client
        experiment = client.get_experiment_by_name(name)
        where = client.create_experiment(name) if experiment is None else experiment.experiment_id
        around = environment()
        tags = {"run": str(run.root.resolve()), "commit": str(around["commit"]), "command": around["command"]}
        number: str = client.create_run(where, run_name=config.name, tags=tags).info.run_id
        for key, value in _flat(config.model_dump(mode="json")):
            client.log_param(number, key, value[:500])
        client.log_text(number, _yaml(config), "config.yaml")
        client.log_text(number, json.dumps(around, indent=2), "environment.json")
        run.write_json("logs/mlflow.json", {"uri": uri, "run_id": number})
        return number


def _yaml(config: Tracked) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _indented(text: str) -> str:
    """Return Markdown for verbatim text."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
