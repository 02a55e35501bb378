"""Report of an experiment from the exposure log: clicks by arm with intervals, and off-policy estimates.

The estimates treat an answer as one action of probability ``propensity`` and its number of clicks as the reward
(Horvitz and Thompson 1952; self-normalised: Swaminathan and Joachims 2015).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from serving.retrieval.recall_audit import wilson
from serving.runtime.experiments.exposures import ANSWERS, FEEDBACK
from setrec.errors import DataError

_RESAMPLES = 1000


def read(folder: Path) -> pd.DataFrame:
    """Return one row per answer: experiment, arm, propensity, items shown, impressions and clicks.

    Repeated impressions or clicks of an item count once; feedback on items or answers that are not in the log is
    ignored.

    Raises:
        DataError: the folder contains no log, or a file that cannot be read.
    """
    answers, feedback = (
        _table(folder, kind, schema) for kind, schema in (("answers", ANSWERS), ("feedback", FEEDBACK))
    )
    if not len(answers):
        raise DataError(f"{folder}: holds no exposures")
    events = feedback.drop_duplicates(["answer_id", "item_id", "event"])
    for event in ("impression", "click"):
        named = events[events["event"] == event][["answer_id", "item_id"]].assign(**{event: 1})
        answers = answers.merge(named, on=["answer_id", "item_id"], how="left")
    # A click implies an impression.
    answers["impression"] = answers[["impression", "click"]].max(axis=1)
    by = ["answer_id", "experiment", "arm", "propensity", "model_version"]
    grouped = answers.fillna({"impression": 0, "click": 0}).groupby(by, as_index=False)
    return grouped.agg(items=("item_id", "size"), impressions=("impression", "sum"), clicks=("click", "sum"))


def report(folder: Path, experiment: str, seed: int = 0) -> dict[str, Any]:
    """Return by arm: answers, impressions, clicks, the click rate with a 95% interval, and the value of this arm for
    all users (clicks per answer) by IPS and SNIPS; the difference of the rates with an interval by resampling answers.

    Raises:
        DataError: see :func:`read`; or there are no answers of that experiment.
    """
    every = read(folder)
    every = every[every["experiment"] == experiment]
    if not len(every):
        raise DataError(f"{folder}: holds no exposures of the experiment '{experiment}'")
    arms = {str(name): _arm(own, len(every)) for name, own in every.groupby("arm")}
    summary: dict[str, Any] = {"experiment": experiment, "arms": arms}
    if set(arms) == {"control", "treatment"}:
        summary["difference"] = _difference(every, seed)
    return summary


def _table(folder: Path, kind: str, schema: Any) -> pd.DataFrame:
    files = sorted(str(file) for file in folder.glob(f"{kind}-*.parquet"))
    try:
        table: pd.DataFrame = ds.dataset(files, schema=schema, format="parquet").to_table().to_pandas()
        return table
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be read: {error}") from error


def _arm(own: pd.DataFrame, answers: int) -> dict[str, Any]:
    seen, clicks = int(own["impressions"].sum()), int(own["clicks"].sum())
    low, high = wilson(clicks / seen, seen) if seen else (0.0, 1.0)
    weight = 1 / own["propensity"]
    return {
        "answers": len(own),
        "impressions": seen,
        "clicks": clicks,
        "click_rate": clicks / seen if seen else None,
        "low": low,
        "high": high,
        "ips": float((weight * own["clicks"]).sum() / answers),
        "snips": float((weight * own["clicks"]).sum() / weight.sum()),
    }


def _difference(every: pd.DataFrame, seed: int) -> dict[str, float]:
    """Return the difference of treatment minus control."""
    rng, rates = np.random.default_rng(seed), []
    parts = [every[every["arm"] == arm][["clicks", "impressions"]].to_numpy() for arm in ("control", "treatment")]
    for _ in range(_RESAMPLES):
        sums = [part[rng.integers(0, len(part), len(part))].sum(axis=0) for part in parts]
        rates.append([clicks / max(seen, 1) for clicks, seen in sums])
    change = np.diff(np.array(rates), axis=1)
    low, high = np.percentile(change, [2.5, 97.5])
    control, treatment = (part[:, 0].sum() / max(part[:, 1].sum(), 1) for part in parts)
    return {"click_rate": float(treatment - control), "low": float(low), "high": float(high)}
