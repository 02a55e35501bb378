"""The table of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from pipelines.reports.terminal import escaped
from pipelines.training.trials import Trial


def trial_table(trials: Sequence[Trial]) -> Table:
    """Return the table of trials, the best first; trial 0 has the settings of the configuration itself."""
    table = Table(title="Trials by their best validation NDCG@10")
    for name in ("Trial", "NDCG@10", "Epochs", "Seconds", "End", "Settings"):
        table.add_column(name, justify="left" if name in ("End", "Settings") else "right")
    for trial in sorted(trials, key=lambda t: (-(t.best if t.best is not None else -1.0), t.number)):
        settings = ", ".join(f"{key}={_short(value)}" for key, value in trial.settings.items()) or "as configured"
        best = "-" if trial.best is None else f"{trial.best:.4f}"
        end = f"{trial.stop}: {trial.reason}" if trial.reason else str(trial.stop)
        table.add_row(str(trial.number), best, str(len(trial.curve)), f"{trial.seconds:.1f}", escaped(end), settings)
    return table


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
