"""The report of a graph run: a self-contained HTML file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pipelines.reports import charts
from pipelines.reports.pages import templates, write_page

OURS = "node tokens"
OPPONENTS = ("text only", "shuffled tokens")
CHARTED = 2
"""Maximum number of metrics of a task with a chart; the others are in its table."""
TOKENIZER = {
    "strategy": "choice of anchors", "anchors": "anchors K", "radius": "radius in hops", "coverage": "coverage",
    "distances": "distances", "encoder": "encoder", "positions": "positions", "columns": "distances a node",
    "width": "width of a position",
}  # fmt: skip
_LOWER_IS_BETTER = re.compile(r"\b(mae|mse|rmse|loss|error|nll|perplexity)\b", re.IGNORECASE)


def write_graph_report(
    path: Path,
    *,
    title: str,
    graph: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    gains: Sequence[float],
    order: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    picture: Markup | None,
    curves: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
    config: str,
) -> Path:
    """Write the report of a graph run to ``path`` as a whole or not at all; parts without data are left out.

    ``graph``: nodes, edges, components, directed, weighted. ``tokenizer``: any of the keys of :data:`TOKENIZER`, as
    :meth:`nodetok.tokenizer.NodeTokenizer.describe` returns them. ``gains``: the share of all nodes each anchor was the
    first to cover, in order of choice. ``order``: similarity, order_accuracy, kendall_tau. ``rows``: task, system,
    metric, value, low, high (the ends of a 95% interval or None) and seeds. Systems named "node tokens..." are ours.
    ``picture``: a plane of the nodes. ``curves``: system, epoch, loss, value, the last two possibly None.
    """
    pages = templates()
    pages.policies["json.dumps_kwargs"] = {"default": str, "ensure_ascii": False}
    html = pages.get_template("graph_report.html.j2").render(
        title=title,
        graph=graph,
        tokenizer=[(label, _shown(key, tokenizer[key])) for key, label in TOKENIZER.items() if key in tokenizer],
        anchors=tokenizer.get("anchors", len(gains) or None),
        covered=_number(tokenizer.get("coverage", math.fsum(gains) if len(gains) else None)),
        coverage=_coverage(gains, tokenizer.get("radius")),
        order=_order(order),
        tasks=[_task(task, [r for r in rows if r["task"] == task]) for task in dict.fromkeys(r["task"] for r in rows)],
        picture=picture,
        curves=_curves(curves),
        environment=environment,
        config=config,
    )
    return write_page(path, html)


def fall_off(gains: Sequence[float]) -> int | None:
    """Return the number of anchors after which the marginal gain has fallen off: the cumulative gain is farthest above
    the straight line from the first anchor to the last. ``None`` where it hardly rises above that line."""
    total = np.cumsum(np.asarray(gains, dtype=np.float64))
    if len(total) < 3 or total[-1] <= 0:
        return None
    above = (total - np.linspace(total[0], total[-1], len(total))) / total[-1]
    return int(np.argmax(above)) + 1 if above.max() > 0.02 else None


def _number(value: Any) -> float | None:
    """Return ``value`` as a float; ``None`` if it is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def _shown(key: str, value: Any) -> str:
    if key == "coverage":
        share = _number(value)
        return "–" if share is None else f"{share:.1%}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _coverage(gains: Sequence[float], radius: Any) -> dict[str, Any] | None:
    """Return the curve of covered nodes over anchors, and a sentence on where it flattens."""
    if not len(gains):
        return None
    total = [0.0, *np.cumsum(np.asarray(gains, dtype=np.float64)).tolist()]
    last, knee = len(gains), fall_off(gains)
    at = np.unique(np.linspace(0, last, min(last, 200) + 1).round().astype(int)).tolist()
    at = sorted({*at, knee or 0})
    series = [charts.Series("share of nodes covered", at, [total[i] for i in at])]
    sentence = f"{_counted(last, 'anchor')} {'cover' if last > 1 else 'covers'} {total[-1]:.1%} of the nodes"
    sentence += f" within {_counted(radius, 'hop')}." if isinstance(radius, int) else "."
    if knee is not None:
        series.append(charts.Series(f"the gain falls off after {_counted(knee, 'anchor')}", [knee], [total[knee]]))
        before, after = total[knee] / knee, (total[-1] - total[knee]) / max(1, last - knee)
        sentence += (
            f" The gain falls off after the first {knee:,}, which cover {total[knee]:.1%}: up to there an anchor adds"
            f" {before:.2%} of the nodes on average, beyond {after:.2%}."
        )
    return {"chart": charts.lines("Share of nodes covered by the first anchors", series, "anchors"), "said": sentence}


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _order(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    keys = {"order_accuracy": "order accuracy", "kendall_tau": "Kendall's tau"}
    values = [{key: _number(r.get(key)) for key in keys} for r in rows]
    shown = [key for key in keys if any(v[key] is not None for v in values)]
    if not shown:
        return None
    best = {key: max(x for v in values if (x := v[key]) is not None) for key in shown}
    cells = [[(v[key], v[key] == best[key]) for key in shown] for v in values]
    lines = list(zip([r["similarity"] for r in rows], cells, strict=True))
    return {"names": [keys[key] for key in shown], "rows": lines}


def _ours(system: str) -> bool:
    return system.startswith(OURS)


def _lower_is_better(metric: str) -> bool:
    return bool(_LOWER_IS_BETTER.search(metric.replace("_", " ")))


def _task(task: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the table, chart and sentences of a task."""
    metrics = list(dict.fromkeys(r["metric"] for r in rows))
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for r in rows:
        numbers = {key: _number(r.get(key)) for key in ("value", "low", "high")}
        if numbers["value"] is not None:
            cells.setdefault(r["system"], {}).setdefault(r["metric"], numbers)
        else:
            cells.setdefault(r["system"], {})
    best = {}
    for metric in metrics:
        values = [own[metric]["value"] for own in cells.values() if metric in own]
        best[metric] = (min if _lower_is_better(metric) else max)(values, default=None)
    lines = [
        {
            "system": system,
            "ours": _ours(system),
            "cells": [(own.get(m), m in own and own[m]["value"] == best[m]) for m in metrics],
            "seeds": ", ".join(dict.fromkeys(_seeds(r.get("seeds")) for r in rows if r["system"] == system)),
        }
        for system, own in cells.items()
    ]
    return {
        "name": task,
        "metrics": [f"{m} (lower is better)" if _lower_is_better(m) else m for m in metrics],
        "rows": lines,
        "seeds": any(line["seeds"] for line in lines),
        "dots": _dots(task, metrics, cells),
        "said": _comparisons(cells, metrics),
    }


def _seeds(seeds: Any) -> str:
    """Return the number of seeds, from their number or a list of them."""
    return "" if seeds is None else f"{seeds if isinstance(seeds, int) else len(seeds)}"


def _dots(task: str, metrics: Sequence[str], cells: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Markup | None:
    """Chart the first metrics of a task; an end of an interval that is missing is the value itself."""
    rows = []
    for metric in metrics[:CHARTED]:
        note = ", lower is better" if _lower_is_better(metric) else ""
        for system, own in cells.items():
            if (cell := own.get(metric)) is not None:
                ends = {end: cell["value"] if cell[end] is None else cell[end] for end in ("low", "high")}
                rows.append({"system": system, "metric": metric + note, "value": cell["value"], **ends})
    ours = next((system for system in cells if _ours(system)), None)
    return charts.intervals(task, rows, ours=ours) if rows else None


def _comparisons(cells: Mapping[str, Mapping[str, Mapping[str, Any]]], metrics: Sequence[str]) -> list[str]:
    """Return sentences on the differences between our system and each control, and whether the intervals overlap."""
    ours = OURS if OURS in cells else next((system for system in cells if _ours(system)), None)
    if ours is None:
        return []
    sentences = []
    for opponent in OPPONENTS:
        parts = []
        for metric in metrics:
            a, b = cells[ours].get(metric), cells.get(opponent, {}).get(metric)
            if a is None or b is None:
                continue
            difference = a["value"] - b["value"]
            place = (
                "equal in" if not difference else f"{abs(difference):.4f} {'above' if difference > 0 else 'below'} in"
            )
            part = f"{place} {metric}" + (" (lower is better)" if _lower_is_better(metric) else "")
            part += f", {a['value']:.4f} against {b['value']:.4f}"
            if None not in (a["low"], a["high"], b["low"], b["high"]):
                apart = a["low"] > b["high"] or a["high"] < b["low"]
                part += ", the intervals apart" if apart else ", the intervals overlapping"
            parts.append(part)
        if parts:
            sentences.append(f"Against {opponent}, {ours}: {'; '.join(parts)}.")
    return sentences


def _curves(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    systems = sorted(dict.fromkeys(r["system"] for r in records), key=lambda system: not _ours(system))
    figures = []
    for key, title in (("value", "Validation value by epoch"), ("loss", "Training loss by epoch")):
        series = []
        for system in systems:
            mine = [
                (r["epoch"], v) for r in records if r["system"] == system and (v := _number(r.get(key))) is not None
            ]
            if mine:
                series.append(charts.Series(system, [epoch for epoch, _ in mine], [value for _, value in mine]))
        if series:
            figures.append({"title": title, "chart": charts.lines(title, series, "epoch")})
    return figures
