import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from pipelines.benchmark.analysis.sections import reliability
from pipelines.reports import charts
from pipelines.reports.charts import POINTS, degree_groups, metric_name, project, scatter

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [f"system {n}" for n in range(12)] + ["A<b> & c $x$"]
HEAD, TAIL = "popularity:head", "popularity:tail"


def rows(metric="ndcg@10", groups=(HEAD, TAIL)):
    return [
        {
            "system": name, "history": "kept", "group": group, "metric": metric,
            "value": 0.01 * (i + 1), "low": 0.008 * (i + 1), "high": 0.012 * (i + 1), "users": 7,
        }
        for i, name in enumerate(NAMES)
        for group in groups
    ]  # fmt: skip


def bins():
    steps = [(0.1 * n, {"group": f"bin {n}", "value": 0.1 * n, "low": 0.05 * n, "high": 0.2 * n}) for n in (1, 2, 3)]
    pairs = [(row, step) for row in rows(groups=("all",))[-2:] for step in steps]
    return [{**row, "metric": "accuracy", "confidence": at, **ends} for row, (at, ends) in pairs]


def curve(name, ys):
    return charts.Series(name, range(1, len(ys) + 1), ys)


DRAW = {
    "lines": lambda: charts.lines("t", [curve(name, [0.1, 0.2, 0.3]) for name in NAMES], "epoch"),
    "intervals": lambda: charts.intervals("t", rows(groups=("all",)) + rows("recall@10", ("all",)), ours=NAMES[-1]),
    "reliability": lambda: reliability(bins()),
    "grouped": lambda: charts.grouped("t", rows(), {HEAD: "head (7 users)", TAIL: "tail"}),
    "scatter": lambda: scatter("t", np.arange(13.0), np.arange(13.0), NAMES, np.arange(13) > 10),
}


def tree(drawn):
    return ET.fromstring(f"<r>{drawn}</r>").find(f"{SVG}svg")


def texts(drawn):
    return [text.text for text in tree(drawn).iter(f"{SVG}text")]


def marks(drawn):
    """The marks that have a title, with it and their places."""
    found = []
    for group in tree(drawn).iter(f"{SVG}g"):
        if (title := group.find(f"{SVG}title")) is not None:
            places = [(float(use.get("x")), float(use.get("y"))) for use in group.iter(f"{SVG}use")]
            found.append((title.text, places))
    return found


@pytest.mark.parametrize("name", DRAW)
def test_a_chart_is_one_well_formed_image_that_names_its_series_and_needs_nothing_outside(name):
    drawn = DRAW[name]()
    assert tree(drawn).get("class") == "chart"
    assert name == "scatter" or any("A<b> & c $x$" in text for text in texts(drawn))
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", drawn)
    assert not re.search(r"""https?:|@import|(href="|url\()[^#]""", outside)
    assert drawn == DRAW[name]()


@pytest.mark.parametrize("name", DRAW)
def test_marks_lie_inside_the_image(name):
    drawn = DRAW[name]()
    wide, high = map(float, tree(drawn).get("viewBox").split()[2:])
    places = [place for _, own in marks(drawn) for place in own]
    assert places
    assert all(0 <= x <= wide and 0 <= y <= high for x, y in places)


@pytest.mark.parametrize("name", ["intervals", "grouped"])
def test_marks_say_their_values(name):
    said = [title for title, _ in marks(DRAW[name]())]
    assert any("0.0100, 95% interval 0.0080 to 0.0120" in title for title in said)
    assert any(title.startswith("A<b> & c $x$") for title in said)


def test_better_systems_stand_further_right_and_ours_is_bold():
    drawn = charts.intervals("t", rows(groups=("all",)), ours=NAMES[-1])
    places = [place[0][0] for _, place in marks(drawn)]
    assert places == sorted(places)
    assert len(places) == len(NAMES)
    bold = [text.text for text in tree(drawn).iter(f"{SVG}text") if "700" in text.get("style")]
    assert bold == [NAMES[-1]]


def test_long_names_are_shortened_and_leave_room_for_the_chart():
    drawn = charts.intervals("t", [{**rows()[0], "system": "very " * 20 + "long"}])
    label = next(text for text in texts(drawn) if text.startswith("very"))
    assert len(label) <= 44
    ((_, ((x, _),)),) = marks(drawn)
    assert x > 4 * len(label)


def test_series_without_points_are_left_out_and_lines_rise_where_values_do():
    drawn = charts.lines("t", [curve("none", []), curve("some", [0.1, 0.2, 0.4])], "epoch")
    ((said, places),) = marks(drawn)
    assert said == "some: 0.4000 at epoch 3"
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert "none" not in texts(drawn)
    assert {"1", "2", "3"} <= {*texts(drawn)}  # epochs are whole
    assert charts.lines("t", [], "epoch") == ""


def test_in_reliability_a_calibrated_system_stands_on_the_diagonal():
    drawn = reliability(bins())
    (line,) = (g for g in tree(drawn).iter(f"{SVG}g") if g.get("id") == "diagonal")
    x1, y1, x2, y2 = (float(n) for n in re.findall(r"[\d.]+", line.find(f"{SVG}path").get("d"))[:4])
    for _, ((x, y),) in marks(drawn):
        assert y == pytest.approx(y1 + (x - x1) / (x2 - x1) * (y2 - y1), abs=0.2)


def test_groups_stand_side_by_side_in_the_given_order():
    drawn = DRAW["grouped"]()
    shown = texts(drawn)
    assert shown.index("head (7 users)") < shown.index("tail")
    head = [x for said, ((x, _),) in marks(drawn) if ", head" in said]
    tail = [x for said, ((x, _),) in marks(drawn) if ", tail" in said]
    assert max(head) < min(tail)


@pytest.mark.parametrize("draw", [charts.intervals, lambda t, r: charts.grouped(t, r, {})])
def test_without_rows_the_image_is_empty_and_well_formed(draw):
    assert not marks(draw("t", []))


def test_of_many_points_a_sample_is_drawn_that_keeps_all_anchors():
    rng = np.random.default_rng(1)
    count = 100_000
    x, y = rng.normal(size=(2, count))
    marked = np.zeros(count, bool)
    marked[rng.choice(count, 500, replace=False)] = True
    drawn = scatter("t", x, y, [f"class {i}" for i in rng.integers(20, size=count)], marked)
    found = marks(drawn)
    assert sum(len(places) for said, places in found if "anchors" in said) == 500
    assert sum(len(places) for _, places in found) == POINTS
    assert len([said for said, _ in found if "anchors" not in said]) == 9
    assert any("other (" in text for text in texts(drawn))
    assert "4,000 of 100,000 points are drawn" in drawn
    assert len(drawn) < 400_000


def test_very_many_anchors_are_all_drawn_in_a_small_file():
    x, y = np.random.default_rng(3).normal(size=(2, 9000))
    drawn = scatter("t", x, y, ["a", "b", "b"] * 3000, np.arange(9000) < 6000)
    found = marks(drawn)
    assert sum(len(places) for said, places in found if "anchors" in said) == 6000
    assert any(said.startswith("2,000 anchors: a") for said, _ in found)
    assert all("anchors" in said for said, places in found if places)
    assert len(drawn) < 800_000


def test_all_of_few_points_are_drawn_in_one_scale():
    drawn = scatter("t", np.array([0.0, 3.0, 3.0]), np.array([0.0, 0.0, 4.0]), ["a", "a", "a"], np.zeros(3, bool))
    ((_, ((x0, y0), (x1, y1), (x2, y2))),) = marks(drawn)
    assert y0 - y2 == pytest.approx(4 / 3 * (x1 - x0), abs=0.1)
    assert y0 == y1
    assert x1 == x2
    assert "points are drawn" not in drawn
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
    np.testing.assert_allclose(np.abs(project(np.array([[1.0], [3.0]]))), [[1, 0], [1, 0]], atol=1e-12)
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
    numbers = [int(text.split()[1].split("-")[0]) for text in texts(drawn) if text.startswith("degree")]
    assert numbers == sorted(numbers)
    assert len(numbers) == len(set(groups))


def test_metrics_are_named_as_people_write_them():
    assert [metric_name(m) for m in ("ndcg@10", "mrr@5", "recall@20", "MAE")] == [
        "NDCG@10",
        "MRR@5",
        "Recall@20",
        "MAE",
    ]
