"""The analyses of a benchmark as sections of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.reports import charts

COORDINATES = ("confidence", "value", "low", "high")
Part = dict[str, Any]
"""``title``, ``text``, ``figures`` (each ``title`` and ``chart``), ``head`` and ``rows`` of a table."""


def parts(results: Mapping[str, Any]) -> list[Part]:
    """Return the non-empty analyses of the first seed of every system."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for system in results["systems"]:
        for name, own in system["analysis"].items():
            rows.setdefault(name, []).extend(own)
    made = [
        _groups(rows.get("popularity", []), results["history"], "popularity:", "By popularity of the item",
                "Head: the most popular items that make up a third of the training interactions; mid, the next third."),
        _groups(rows.get("length", []), results["history"], "length:", "By length of the history", ""),
        _groups(rows.get("cold", []), results["history"], "truths:", "By share of cold items among the truths",
                "Users whose test items are all warm, some cold, or all cold; over the whole catalogue."),
        _groups(rows.get("transition", []), results["history"], "next:", "By transitions seen in training",
                "Seen: some test item followed the user's last one within three steps in the history of a user."),
        _beyond(rows.get("beyond", [])),
        _calibration(rows.get("calibration", [])),
        _overlap(rows.get("overlap", [])),
        _shuffled(rows.get("shuffled", [])),
    ]  # fmt: skip
    return [part for part in made if part is not None]


def _part(title: str, text: str, charts: Sequence[tuple[str, Any]], head: Sequence[str] = (), rows: Any = ()) -> Part:
    drawn = [{"title": name, "chart": chart} for name, chart in charts]
    return {"title": title, "text": text, "figures": drawn, "head": list(head), "rows": list(rows)}


def _groups(rows: Sequence[Mapping[str, Any]], history: str, prefix: str, title: str, text: str) -> Part | None:
    if not rows:
        return None
    mine = [row for row in rows if (row["history"], row["metric"]) == (history, "ndcg@10")]
    names = {row["group"]: f"{row['group'].removeprefix(prefix)} ({row['users']} users)" for row in mine}
    name = f"NDCG@10, history {history}"
    return _part(title, text, [(name, charts.grouped(name, mine, names))])


def _beyond(rows: Sequence[Mapping[str, Any]]) -> Part | None:
    if not rows:
        return None
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    value = {(row["system"], row["metric"]): f"{row['value']:.3f}" for row in rows}
    table = [
        (system, *(value.get((system, metric), "-") for metric in metrics))
        for system in dict.fromkeys(row["system"] for row in rows)
    ]
    text = (
        "Of every user's ten items, history removed. Coverage: share of the catalogue in some list; Gini: 0 where all "
        "items are shown alike; popularity: training interactions; novelty: bits; new items: share without training "
        "interactions; distance: one minus the cosine of two texts of a list."
    )
    return _part("Beyond accuracy", text, (), ("System", *metrics), table)


def _calibration(rows: Sequence[Mapping[str, Any]]) -> Part | None:
    plain = [row for row in rows if row["metric"] in ("nll", "ece")]
    if not plain:
        return None
    table = [(r["system"], r["metric"].upper(), f"{r['value']:.4f}", _interval(r)) for r in plain]
    text = (
        "Scores as probabilities, softmax over the catalogue without the history, at the temperature that fits "
        "validation best. NLL: negative log-likelihood per truth. ECE: mean distance of confidence and accuracy of the "
        "item at the top."
    )
    head = ("System", "Metric", "Value", "95% interval")
    return _part("Calibration", text, [("Reliability", reliability(rows))], head, table)


def reliability(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Chart the accuracy of the top item against its probability, from the rows of
    :func:`pipelines.benchmark.analysis.calibration.calibration`; a calibrated system lies on the diagonal."""
    bins = [row for row in rows if row["metric"] == "accuracy" and "confidence" in row]
    series = [
        charts.Series(system, *([row[key] for row in bins if row["system"] == system] for key in COORDINATES))
        for system in dict.fromkeys(row["system"] for row in bins)
    ]
    return charts.lines("Accuracy of the top item", series, "probability of the top item", diagonal=True)


def _overlap(rows: Sequence[Mapping[str, Any]]) -> Part | None:
    if not rows:
        return None
    table = [(r["system"], r["group"], r["metric"], f"{r['value']:.3f}", _interval(r)) for r in rows]
    text = (
        "Similarity of the rankings by two kinds of slots: items common to both top tens, and correlation of all ranks."
    )
    return _part("Agreement of slots", text, (), ("System", "Kinds", "Measure", "Value", "95% interval"), table)


def _shuffled(rows: Sequence[Mapping[str, Any]]) -> Part | None:
    shown = [r for r in rows if r["group"] == "all" and r["metric"] == "ndcg@10"]
    if not shown:
        return None
    table = [
        (
            r["system"],
            r["history"],
            f"{r['value']:.4f}",
            _interval(r),
            f"{r['shuffled']:.4f}",
            "yes" if r["inside"] else "no",
        )
        for r in shown
    ]
    text = (
        "Equal scores are ordered by row number. With rows renumbered at random ties break differently; NDCG@10 over "
        "all items:"
    )
    head = ("System", "History", "As numbered", "95% interval", "Renumbered", "Inside")
    return _part("Ties", text, (), head, table)


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.4f} to {row['high']:.4f}"
