import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from pipelines.graph.report import fall_off, write_graph_report
from pipelines.reports.scatter import POINTS, degree_groups, project, scatter

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


def paths(drawn, kind):
    tree = ET.fromstring(f"<r>{drawn}</r>").find("svg")
    return [p for p in tree.iter("path") if ("anchor" in p.get("class")) == (kind == "anchor")]


def points(drawn):
    return [spot for p in paths(drawn, "plain") for spot in p.get("d").split("M")[1:]]


def test_the_report_needs_nothing_outside_itself(tmp_path):
    html = write_graph_report(tmp_path / "deep" / "report.html", **full()).read_text()
    assert not re.search(r"""(src|href)\s*=|@import|url\(|https?://""", html)
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
    assert html.count('<g class="ours">') == 4
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


def test_long_names_have_room_in_the_charts(tmp_path):
    long = "node tokens, " + "very " * 20 + "long"
    html = write_graph_report(tmp_path / "r.html", **{**EMPTY, "rows": [row(long, 0.8)]}).read_text()
    assert re.search(r'viewBox="-2\d\d 0 8\d\d ', html)
    assert f"<td>{long}</td>" in html


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


def test_of_many_points_a_sample_is_drawn_that_keeps_all_anchors():
    rng = np.random.default_rng(1)
    count = 100_000
    x, y = rng.normal(size=(2, count))
    marked = np.zeros(count, bool)
    marked[rng.choice(count, 500, replace=False)] = True
    groups = [f"class {i}" for i in rng.integers(20, size=count)]
    drawn = scatter("t", x, y, groups, marked)
    assert drawn == scatter("t", x, y, groups, marked)
    assert len(paths(drawn, "anchor")) == 500
    assert {int(re.search(r"node (\d+)", p.find("title").text)[1]) for p in paths(drawn, "anchor")} == set(
        np.flatnonzero(marked).tolist()
    )
    assert len(points(drawn)) == POINTS - 500
    assert len(paths(drawn, "plain")) == 9
    assert "other (" in drawn
    assert len(drawn) < 400_000


def test_very_many_anchors_are_all_drawn_in_a_small_file():
    x, y = np.random.default_rng(3).normal(size=(2, 9000))
    drawn = scatter("t", x, y, ["a", "b", "b"] * 3000, np.arange(9000) < 6000)
    assert drawn.count("l6 6l-6 6l-6-6z") == 6000 + 1  # and the key
    assert "2,000 anchors: a" in drawn
    assert not points(drawn)
    assert len(drawn) < 400_000


def test_all_of_few_points_are_drawn_inside_the_plane():
    drawn = scatter("t", np.array([0.0, 1e6, 5e5]), np.array([3.0, 3.0, 3.0]), ["a", "a", "b"], np.zeros(3, bool))
    assert len(points(drawn)) == 3
    assert "points are drawn" not in drawn
    wide, tall = (float(v) for v in re.search(r'viewBox="0 0 (\S+) (\S+)"', drawn).groups())
    places = [tuple(map(float, spot.removesuffix("h0").split())) for spot in points(drawn)]
    assert all(0 < x < wide and 0 < y < tall for x, y in places)
    assert "nan" not in scatter("t", np.zeros(2), np.zeros(2), ["a", "b"], np.ones(2, bool))
    assert scatter("t", np.zeros(0), np.zeros(0), [], np.zeros(0, bool)) == ""


def test_points_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="2 points, 1 groups"):
        scatter("t", np.zeros(2), np.zeros(2), ["a"], np.zeros(2, bool))
    with pytest.raises(ValueError, match="not finite"):
        scatter("t", np.array([0.0, np.inf]), np.zeros(2), ["a", "a"], np.zeros(2, bool))


@pytest.mark.parametrize("shape", [(300, 12), (8, 40), (70_000, 3)])
def test_components_do_not_depend_on_how_nodes_are_numbered(shape):
    rng = np.random.default_rng(2)
    positions = rng.normal(size=shape) * np.linspace(3, 1, shape[1])
    order = rng.permutation(len(positions))
    plane = project(positions)
    np.testing.assert_allclose(project(positions[order]), plane[order], atol=1e-6)
    left, values, _ = np.linalg.svd(positions - positions.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(plane), np.abs(left[:, :2] * values[:2]), atol=1e-6)


def test_too_few_columns_leave_components_at_zero():
    np.testing.assert_allclose(project(np.array([[1.0], [3.0]])), [[-1, 0], [1, 0]], atol=1e-12)
    assert project(np.zeros((0, 4))).shape == (0, 2)
    assert not project(np.full((5, 3), 7.0, dtype=np.float32)).any()


def test_degree_groups_hold_equal_degrees_together_and_say_what_they_hold():
    degree = np.array([0, 1, 1, 1, 2, 2, 3, 4, 5, 90])
    groups = degree_groups(degree)
    assert len(set(groups)) <= 4
    for d, name in zip(degree, groups, strict=True):
        low, _, high = name.removeprefix("degree ").partition("-")
        assert int(low) <= d <= int(high or low)
    assert degree_groups(np.full(7, 2)) == ["degree 2"] * 7
    assert degree_groups(np.array([])) == []
    drawn = scatter("t", degree, degree, groups, np.zeros(10, bool))
    numbers = [int(n) for n in re.findall(r"</svg>degree (\d+)", drawn)]
    assert numbers == sorted(numbers)
