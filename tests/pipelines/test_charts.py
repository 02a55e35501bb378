import xml.etree.ElementTree as ET

import pytest

from pipelines.reports import charts


@pytest.mark.parametrize("high", [1e-4, 0.013, 0.5, 7.0, 1234.0])
def test_ticks_are_round_few_and_inside(high):
    ticks = charts._ticks(high)
    assert 3 <= len(ticks) <= 11
    assert all(0 <= t <= high for t in ticks)


def test_charts_are_well_formed_and_say_their_values_without_colour():
    rows = [charts.Interval("A<b>", 0.2, 0.1, 0.3), charts.Interval("ours", 0.4, 0.3, 0.5, True)]
    drawn = charts.intervals("t", rows)
    ET.fromstring(drawn)
    assert "A&lt;b&gt;: 0.2000, 95% interval 0.1000 to 0.3000" in drawn
    series = [charts.Series("one", [1, 2], [0.1, 0.2]), charts.Series("two", [1], [0.3])]
    ET.fromstring(f"<r>{charts.lines('t', series, 'epoch')}</r>")
    ET.fromstring(f"<r>{charts.bars('t', ['head', 'tail'], [('x', [0.1, 0.0]), ('y', [0.2, 0.3])])}</r>")


def test_better_values_stand_further_right():
    drawn = charts.intervals("t", [charts.Interval("low", 0.1, 0.1, 0.1), charts.Interval("high", 0.2, 0.2, 0.2)])
    circles = [float(c.get("cx")) for c in ET.fromstring(drawn).iter("circle")]
    assert circles[0] < circles[1]


def test_a_long_name_stands_inside_the_chart_and_before_the_values():
    label = "SETRec without transitions"
    rows = [charts.Interval(label, 0.1, 0.0, 0.2), charts.Interval("ours", 0.2, 0.1, 0.2, True)]
    drawn = ET.fromstring(charts.intervals("t", rows))
    ends = [float(text.get("x")) for text in drawn.iter("text") if text.text == label]
    assert all(end >= len(label) * charts.LETTER for end in ends)
    assert all(float(line.get("x1")) > ends[0] for line in drawn.iter("line"))
