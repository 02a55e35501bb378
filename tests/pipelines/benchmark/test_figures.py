import xml.etree.ElementTree as ET

import pytest

from pipelines.benchmark.analysis import figures

NAMES = [f"system {n}" for n in range(12)] + ["A<b> & c"]


def rows(metric="ndcg@10", groups=("all", "popularity:head", "popularity:tail")):
    return [
        {
            "system": name, "history": "kept", "group": group, "metric": metric,
            "value": 0.01 * (i + 1), "low": 0.008 * (i + 1), "high": 0.012 * (i + 1), "users": 7,
        }
        for i, name in enumerate(NAMES)
        for group in groups
    ]  # fmt: skip


def bins():
    return [
        {
            **row,
            "metric": "accuracy",
            "group": f"bin {n}",
            "confidence": 0.1 * n,
            "value": 0.1 * n,
            "low": 0.05 * n,
            "high": 0.2 * n,
        }
        for row in rows(groups=("all",))[-2:]
        for n in range(1, 4)
    ]


CURVES = {name: [{"epoch": e, "seconds": 30.0 * e, "ndcg@10": 0.01 * e} for e in range(1, 5)] for name in NAMES}
CHARTS = {
    "curves": lambda: figures.learning_curves(CURVES),
    "epochs": lambda: figures.learning_curves(CURVES, x="epoch"),
    "dots": lambda: figures.dots(rows() + rows("recall@10"), ["ndcg@10", "recall@10"], history="kept", ours=NAMES[-1]),
    "reliability": lambda: figures.reliability(bins()),
    "grouped": lambda: figures.grouped_dots(rows(), "ndcg@10", history="kept", prefix="popularity:"),
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_one_well_formed_image_that_names_every_system_and_stands_alone(name):
    drawn = CHARTS[name]()
    tree = ET.fromstring(drawn)
    assert (tree.tag, tree.get("class")) == ("svg", "chart")
    assert any(text.text == "A<b> & c" for text in tree.iter("text"))
    file = ET.fromstring(figures.alone(drawn))
    assert file.tag == f"{SVG}svg"
    assert file.find(f"{SVG}style") is not None
    assert len(list(file.iter())) == len(list(tree.iter())) + 2


@pytest.mark.parametrize("name", CHARTS)
def test_nothing_is_drawn_outside_the_image(name):
    tree = ET.fromstring(CHARTS[name]())
    wide, high = map(float, tree.get("viewBox").split()[2:])
    for one in tree.iter():
        for key in ("x", "x1", "x2", "cx", "y", "y1", "y2", "cy"):
            if one.get(key) is not None:
                assert -1 <= float(one.get(key)) <= (wide if "x" in key else high) + 1
        for point in (one.get("points") or "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= wide
            assert 0 <= y <= high


@pytest.mark.parametrize("name", ["dots", "grouped"])
def test_marks_say_their_values(name):
    drawn = CHARTS[name]()
    assert "0.0100, 95% interval 0.0080 to 0.0120" in drawn
    assert "A&lt;b&gt; &amp; c" in drawn


def test_better_systems_stand_further_right_and_ours_is_told_apart():
    tree = ET.fromstring(figures.dots(rows(), ["ndcg@10"], history="kept", ours=NAMES[-1]))
    places = [float(circle.get("cx")) for circle in tree.iter("circle")]
    assert places == sorted(places)
    assert len(places) == len(NAMES) - 1
    assert [g.get("class") for g in tree.iter("g") if g.get("class")].count("ours") == 2


def test_systems_without_a_curve_are_left_out_and_lines_rise_where_values_do():
    curves = {"none": [], "some": CURVES[NAMES[0]]}
    tree = ET.fromstring(figures.learning_curves(curves))
    (line,) = tree.iter("polyline")
    ys = [float(point.split(",")[1]) for point in line.get("points").split()]
    assert ys == sorted(ys, reverse=True)
    assert "none" not in [text.text for text in tree.iter("text")]


def test_in_reliability_an_honest_system_stands_on_the_diagonal():
    tree = ET.fromstring(figures.reliability(bins()))
    (diagonal,) = (line for line in tree.iter("line") if line.get("stroke-dasharray"))
    x1, y1, x2, y2 = (float(diagonal.get(key)) for key in ("x1", "y1", "x2", "y2"))
    for circle in list(tree.iter("circle"))[1:]:
        x, y = float(circle.get("cx")), float(circle.get("cy"))
        assert y == pytest.approx(y1 + (x - x1) / (x2 - x1) * (y2 - y1), abs=0.2)


def test_groups_are_side_by_side_and_only_those_asked_for():
    tree = ET.fromstring(CHARTS["grouped"]())
    said = [text.text for text in tree.iter("text")]
    assert "head (7 users)" in said
    assert "tail (7 users)" in said
    assert not any("all" in text for text in said)


@pytest.mark.parametrize("draw", [
    lambda: figures.learning_curves({}),
    lambda: figures.dots([], ["ndcg@10"], history="kept"),
    lambda: figures.reliability([]),
    lambda: figures.grouped_dots([], "ndcg@10", history="kept"),
])  # fmt: skip
def test_without_rows_the_image_is_empty_and_well_formed(draw):
    ET.fromstring(draw())
