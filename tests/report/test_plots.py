"""Plots are whole SVGs in which nothing but text can come from outside, and their marks lie where the numbers say."""

from __future__ import annotations

from math import inf, nan
from xml.etree.ElementTree import Element, fromstring

import pytest
from damage.manifests import NASTY

from lq_plugin.printing import line
from lq_plugin.report.plots import BOTTOM, CURVE_HEIGHT, LEFT, LONGEST_LABEL, RIGHT, TOP, WIDTH, Bar, Point, bars, curve


def of_class(plot: Element, kind: str) -> list[Element]:
    return [each for each in plot.iter() if each.get("class") == kind]


def plotted(*points: Point, limit: float = 0.01, percent: bool = False) -> Element:
    return fromstring(curve(points, limit, ("across", "up"), percent, "title", "what it shows"))


def test_bars_are_as_long_as_their_shares() -> None:
    plot = fromstring(bars([Bar("a", 0.6, "first"), Bar("b", 0.3, "second"), Bar("c", 0.0, "third")], "title", "shown"))
    lengths = [float(bar.attrib["width"]) for bar in of_class(plot, "bar")]
    assert lengths[0] == pytest.approx(2 * lengths[1])
    assert lengths[2] == 1  # a line: it is there
    assert [text.text for text in plot.iter("text")] == ["a", "60.0 %", "b", "30.0 %", "c", "0.0 %"]
    assert [group.findtext("title") for group in plot.iter("g")] == ["first", "second", "third"]
    last = of_class(plot, "bar")[-1].attrib
    assert float(last["y"]) + float(last["height"]) < float(plot.attrib["height"])


@pytest.mark.parametrize("share", [nan, inf, -1.0, 1e308])
def test_a_share_that_is_none_is_no_bar(share: float) -> None:
    plot = fromstring(bars([Bar("a", share, "?"), Bar("b", 0.5, "!")], "title", "shown"))
    wrong, right = (float(bar.attrib["width"]) for bar in of_class(plot, "bar"))
    assert wrong == 1 < right < WIDTH


def test_plots_speak_to_a_screen_reader_and_take_every_name_for_text() -> None:
    for svg in (
        bars([Bar(NASTY, 1.0, NASTY)], NASTY, NASTY),
        curve([Point(1, 1, "over", NASTY)], 1, (NASTY, NASTY), False, NASTY, NASTY),
    ):
        plot = fromstring(svg)
        assert plot.attrib["role"] == "img"
        assert [each.tag for each in plot][:2] == ["title", "desc"]
        assert plot.findtext("title") == plot.findtext("desc") == line(NASTY)
        assert svg.isprintable()
        assert "<script" not in svg


def test_a_long_label_ends_as_its_operator_does() -> None:
    plot = fromstring(bars([Bar("layers." * 20 + "conv2d_7", 1.0, "")], "title", "shown"))
    label = next(plot.iter("text")).text or ""
    assert (len(label), label[0], label[-9:]) == (LONGEST_LABEL, "…", ".conv2d_7")


def test_points_lie_where_the_axes_say_and_the_lowest_are_joined() -> None:
    points = Point(0.8, 0.005, "winner", "1"), Point(0.8, 0.02, "over", "2"), Point(0.9, 0.03, "over", "3")
    plot = plotted(*points)
    marks = {mark.findtext("title"): mark.attrib for mark in plot.iter("circle")}
    places = {title: (float(mark["cx"]), float(mark["cy"])) for title, mark in marks.items()}
    assert places["1"][0] == places["2"][0] < places["3"][0]
    assert places["1"][1] > places["2"][1] > places["3"][1]
    (limit,) = of_class(plot, "limit")
    assert places["2"][1] < float(limit.attrib["y1"]) == float(limit.attrib["y2"]) < places["1"][1]
    (joined,) = of_class(plot, "joined")
    assert joined.attrib["points"] == " ".join(f"{x},{y}" for x, y in (places["1"], places["3"]))
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= CURVE_HEIGHT - BOTTOM for x, y in places.values())
    assert [mark.get("class") for mark in plot.iter("circle")][-1] == "winner"
    assert {"80 %", "100 %", "0.02", "across", "up", "budget"} <= {text.text for text in plot.iter("text")}
    assert "2 %" in {text.text for text in plotted(*points, percent=True).iter("text")}


@pytest.mark.parametrize(("value", "limit"), [(0.0, 0.0), (1e100, -1e100), (1e-100, 0.0), (1.0, 1 + 2e-16)])
def test_extreme_figures_are_drawn_inside(value: float, limit: float) -> None:
    (mark,) = plotted(Point(1.0, value, "over", ""), limit=limit).iter("circle")
    assert TOP <= float(mark.attrib["cy"]) <= CURVE_HEIGHT - BOTTOM
