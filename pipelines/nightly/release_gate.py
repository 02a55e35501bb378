"""Whether a new model may replace the last one: its loss on the test users, with an interval.

The gate compares the score that is served, and then the model alone, because the components could hide a model that
learned nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config.sections import GateSettings
from pipelines.evaluation.system_names import ALONE, OURS
from setrec.errors import ConfigError
from setrec.evaluation.intervals import bootstrap_means, paired_difference

HISTORY, GROUP = "removed", "all"
_SHARED = 0.5
"""Share of the last release's test users that must be among the new ones for a paired comparison."""


@dataclass(frozen=True)
class Verdict:
    """The content of ``gate.json``. ``system``: the compared system. ``difference``, ``low`` and ``high``: new minus
    last, with its 95% interval, over ``users`` test users, the same ones if ``paired``. ``allowed``: the smallest
    difference that passes."""

    passed: bool
    reason: str
    system: str
    metric: str
    new: float
    users: int
    last: float | None = None
    release: str | None = None
    paired: bool | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    allowed: float | None = None

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def judge(
    new: Path, last: Path | None, release: str | None, settings: GateSettings, *, resamples: int, seed: int
) -> Verdict:
    """Compare the metrics per user (``per_user.parquet``) of a new model with those of the last release, both for the
    served score and for the model alone. Return the verdict that holds back, if any, else that on the served score.

    Raises:
        ConfigError: a file cannot be read or does not hold the metric.
    """
    ours = _per_user(new, settings.metric)
    value, name = float(np.mean(list(ours[OURS].values()))), _upper(settings)
    if value < settings.minimum:
        reason = f"{name} is {value:.4f}, less than the minimum of {settings.minimum:.4f}"
        return Verdict(False, reason, OURS, settings.metric, value, len(ours[OURS]))
    if last is None:
        reason = f"{name} is {value:.4f}; nothing was released before"
        return Verdict(True, reason, OURS, settings.metric, value, len(ours[OURS]))
    theirs = _per_user(last, settings.metric)
    served = _compare(ours[OURS], theirs[OURS], OURS, release, settings, resamples, seed)
    if not served.passed or ALONE not in {*ours, *theirs}:
        return served
    # Without its own row, the model is served without components.
    alone = [each.get(ALONE, each[OURS]) for each in (ours, theirs)]
    verdict = _compare(alone[0], alone[1], ALONE, release, settings, resamples, seed)
    return served if verdict.passed else verdict


def _upper(settings: GateSettings) -> str:
    return settings.metric.upper().replace("@", " at ")


def _compare(
    ours: dict[str, float],
    theirs: dict[str, float],
    system: str,
    release: str | None,
    settings: GateSettings,
    resamples: int,
    seed: int,
) -> Verdict:
    shared = [user for user in theirs if user in ours]
    paired = len(shared) >= _SHARED * len(theirs)
    if paired:
        a, b = np.array([ours[user] for user in shared]), np.array([theirs[user] for user in shared])
        found = paired_difference(a, b, resamples, seed)
    else:
        a, b = np.array(list(ours.values())), np.array(list(theirs.values()))
        found = _difference(a, b, resamples, seed)
    return _verdict(settings, system, release, paired, float(a.mean()), float(b.mean()), len(a), found)


def _verdict(
    s: GateSettings,
    system: str,
    release: str | None,
    paired: bool,
    value: float,
    before: float,
    users: int,
    found: tuple[float, float, float],
) -> Verdict:
    difference, low, high = found
    allowed = -s.margin * before
    passed = (difference if s.by == "mean" else low) >= allowed
    without = "" if system == OURS else f" of {system}"
    reason = (
        f"{_upper(s)}{without} is {value:.4f}, {before:.4f} for {release}: {difference:+.4f} [{low:+.4f}, {high:+.4f}] "
        f"over {users} {'shared' if paired else 'other'} users; {allowed:+.4f} is allowed"
    )
    return Verdict(
        passed, reason, system, s.metric, value, users, before, release, paired, difference, low, high, allowed
    )  # fmt: skip


def _difference(a: np.ndarray, b: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """Return the mean of a minus the mean of b over different users, with its 95% interval."""
    means = [bootstrap_means(x[:, None], resamples, seed + i)[:, 0] for i, x in enumerate((a, b))]
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    return float(a.mean() - b.mean()), float(low), float(high)


def _per_user(path: Path, metric: str) -> dict[str, dict[str, float]]:
    """Return the metric by system (served, and the model alone) and user id; users without a truth are left out."""
    wanted = [("system", "in", [OURS, ALONE]), ("history", "==", HISTORY), ("group", "==", GROUP)]
    try:
        table = pq.read_table(path, columns=["system", "user_id", metric], filters=wanted)
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{path}: holds no {metric} per user ({reason})") from error
    values: dict[str, dict[str, float]] = {}
    for system, user, value in zip(*(column.to_pylist() for column in table.itercolumns()), strict=True):
        if value is not None and value == value:
            values.setdefault(system, {})[user] = value
    if OURS not in values:
        raise ConfigError(f"{path}: holds no {metric} of any user: nothing to compare")
    return values
