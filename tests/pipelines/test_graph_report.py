import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from pipelines.graph.report import fall_off, write_graph_report
from pipelines.reports.charts import scatter

NASTY = "<b>x</b> & \"y\" 'z'"
EMPTY = {
    "title": "Empty", "graph": {}, "tokenizer": {}, "gains": [], "order": [], "rows": [], "picture": None,
    "curves": [], "environment": {}, "config": "",
}  # fmt: skip


def row(system, value, task="classes", metric="accuracy", half=0.01, seeds=3):
    return {
        "task": task, "system": system, "metric": metric, "value": value, "low": value - half, "high": value + half,
        "seeds": seeds,
    }  # fmt: skip


def full(nasty=NASTY):
    rng = np.random.default_rng(0)
    classes = [nasty if i % 3 else "plain" for i in range(50)]
    systems = {"node tokens": 0.8, "text only": 0.7, "shuffled tokens": 0.795, nasty: 0.4}
    return {
        "title": nasty,
        "graph": {"nodes": 12_345, "edges": 67_890, "components": 1, "directed": False, "weighted": True},
        "tokenizer": {"strategy": nasty, "anchors": 8, "radius": 2, "coverage": 0.91, "distances": nasty},
        "gains": [0.4, 0.2, 0.1, 0.08, 0.06, 0.04, 0.02, 0.01],
        "order": [{"similarity": nasty, "order_accuracy": 0.93, "kendall_tau": 0.71}],
        "rows": [row(s, v, t, m) for t in ("classes", nasty) for s, v in systems.items() for m in ("accuracy", nasty)],
        "picture": scatter(nasty, *rng.normal(size=(2, 50)), classes, np.arange(50) < 5),
        "curves": [{"system": s, "epoch": e, "loss": 3.0 / e, "value": 0.2 * e} for s in systems for e in (1, 2, 3)],
        "environment": {"commit": nasty, "cpu": nasty, "cpu_count": 2, "command": nasty, "seconds": {nasty: 1.0}},
        "config": nasty,
    }


def test_the_report_needs_nothing_outside_itself(tmp_path):
    html = write_graph_report(tmp_path / "deep" / "report.html", **full()).read_text()
    inside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)  # names, which nobody fetches
    assert not re.search(r"""src\s*=|href\s*=\s*"[^#]|@import|url\([^#]|https?://""", inside)
    assert "<script" not in html
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_everything_it_is_given_is_escaped(tmp_path):
    html = write_graph_report(tmp_path / "r.html", **full()).read_text()
    assert "<b>x" not in html
    assert html.count("&lt;b&gt;x&lt;/b&gt; &amp;") > 20
    for chart in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(chart)


def test_it_says_how_far_ours_stands_from_the_two_opponents(tmp_path):
    html = write_graph_report(tmp_path / "r.html", **full("plain")).read_text()
    assert (
        "Against text only, node tokens: 0.1000 above in accuracy, 0.8000 against 0.7000, the intervals apart" in html
    )
    assert (
        "Against shuffled tokens, node tokens: 0.0050 above in accuracy, 0.8000 against 0.7950, the intervals ov"
        in html
    )
    assert '<tr class="ours"><td>node tokens</td>' in html
    assert html.count("node tokens: 0.8000, 95% interval 0.7900 to 0.8100") == 4
    for said in ("12,345", "91.0%", "component", "undirected and weighted", "0.9300", "Training loss", "commit plain"):
        assert said in html, said


def test_without_the_opponents_nothing_is_said_of_them(tmp_path):
    html = write_graph_report(tmp_path / "r.html", **{**EMPTY, "rows": [row("node tokens", 0.8), row("GCN", 0.9)]})
    assert "Against" not in html.read_text()


def test_lower_values_of_an_error_are_better_and_values_may_be_missing(tmp_path):
    rows = [row("node tokens", 2.0, metric="MAE"), row("text only", 3.0, metric="MAE"), row("GCN", 0.5)]
    rows += [
        {**row("text only", float("nan")), "low": None, "high": None},
        {**row("x", -0.5, metric="tau"), "low": None},
    ]
    html = write_graph_report(tmp_path / "r.html", **{**EMPTY, "rows": rows}).read_text()
    assert '<td class="best">2.0000' in html
    assert "1.0000 below in MAE (lower is better)" in html
    assert "nan" not in html


@pytest.mark.parametrize(
    ("part", "heading"),
    [
        ("rows", "Tasks"),
        ("picture", "Where the nodes lie"),
        ("order", "Order of distances"),
        ("curves", "Training"),
        ("gains", "Share of nodes covered"),
    ],
)
def test_parts_without_data_are_left_out(tmp_path, part, heading):
    whole = write_graph_report(tmp_path / "whole.html", **full("plain")).read_text()
    less = write_graph_report(tmp_path / "less.html", **{**full("plain"), part: EMPTY[part]}).read_text()
    assert heading in whole
    assert heading not in less


def test_a_run_that_has_nothing_yet_still_has_a_report(tmp_path):
    body = write_graph_report(tmp_path / "r.html", **EMPTY).read_text().split("<body>")[1]
    assert "<h1>Empty</h1>" in body
    assert not re.search("<h2|<figure|<table|facts", body)


def test_the_place_where_the_gain_falls_off():
    assert fall_off([0.3, 0.3, 0.3, 0.01, 0.01, 0.01]) == 3
    assert fall_off([0.1] * 10) is None
    assert fall_off([0.5, 0.1]) is None
