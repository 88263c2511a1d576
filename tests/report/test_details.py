"""What INT8 costs, and what algorithms and searches did about it, as a manifest holds it."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from xml.etree.ElementTree import fromstring

import pytest
from damage.manifests import good

from lq_plugin.learning import AlgorithmStep, Sensitivity, Trial
from lq_plugin.report.details import MOST, Section, sections
from lq_plugin.report.manifest import Manifest
from lq_plugin.selection import Budget


@pytest.fixture
def content() -> Manifest:
    return replace(Manifest.from_json(good()), sensitivity={}, steps=(), trials=(), notes={})


def cells(section: Section, column: str) -> list[str]:
    number = list(section.columns).index(column)
    return [row[number] for row in section.rows]


def test_a_manifest_without_them_has_no_sections(content: Manifest) -> None:
    assert sections(replace(content, sensitivity={"static": ()})) == []


def test_the_most_costly_operators_add_up(content: Manifest) -> None:
    shares = [0.5, 0.25, *[0.01] * 25]
    ranking = tuple(Sensitivity(f"net.{n}", "conv2d", "", 0.0, share) for n, share in enumerate(shares))
    (section,) = sections(replace(content, sensitivity={"static": ranking}))
    assert section.title == "Most costly operators of static"
    assert section.rows[:3] == [
        ("net.0", "conv2d", "50.0 %", "50.0 %"),
        ("net.1", "conv2d", "25.0 %", "75.0 %"),
        ("net.2", "conv2d", "1.0 %", "76.0 %"),
    ]
    assert len(section.rows) == MOST == len(list(fromstring(section.plot).iter("rect")))
    assert section.more == "7 more operators have 7.0 % of the error."
    (section,) = sections(replace(content, sensitivity={"static": ranking[: MOST + 1]}))
    assert section.more == "1 more operator has 1.0 % of the error."


def test_notes_are_listed_with_their_candidates(content: Manifest) -> None:
    (section,) = sections(replace(content, notes={"static": ("a", "b"), "dynamic": ("a",) * MOST}))
    assert section.rows[:3] == [("static", "a"), ("static", "b"), ("dynamic", "a")]
    assert (len(section.rows), section.more) == (MOST, "2 more notes in the manifest.")


def test_every_algorithm_is_listed_with_what_it_gave(content: Manifest) -> None:
    steps = (
        AlgorithmStep(
            "static", "equalization", "kept", "", {"a": 9.0, "b": 9.5}, {"a": 12.5, "b": 12.0}, 3.21, kept_on=("a", "b")
        ),
        AlgorithmStep("static", "smoothing", "refused", "+0.10 dB on a", {"a": 12.5}, {"a": 12.6}, 1.0),
        AlgorithmStep("static", "sequential", "not_tried", "the time limit of 4 s was reached"),
    )
    (section,) = sections(replace(content, steps=steps))
    assert section.rows == [
        ("static", "equalization", "kept", "a, b", "9.5", "12.0", "3.2", ""),
        ("static", "smoothing", "refused", "a", "12.5", "12.6", "1.0", "+0.10 dB on a"),
        ("static", "sequential", "not tried", "", "–", "–", "0.0", "the time limit of 4 s was reached"),
    ]
    assert section.plot == ""


def test_a_search_is_a_table_and_a_curve(content: Manifest) -> None:
    trials = (
        Trial("static", ("a",), 0.9, 0.03, within=False),
        Trial("static", ("a", "b", "c"), 0.7, 0.001, within=True),
        Trial("other", ("a",), 0.9, None, within=False),
        Trial("static", ("a", "b"), 0.8, 0.002, within=True),
        Trial("static", ("b",), 0.9, None, within=False),
    )
    static, other = sections(replace(content, trials=trials, budget=Budget("val/acc", 0.01, False, "max")))
    assert cells(static, "left float") == ["1", "3", "2", "1"]
    assert cells(static, "drop of val/acc") == ["0.0300", "0.0010", "0.0020", "–"]
    assert cells(static, "budget") == ["over", "within", "within", "not measured"]
    assert static.more == "Trial 3 was chosen; it leaves float: a, b."
    marks = {mark.findtext("title"): mark.get("class") for mark in fromstring(static.plot).iter("circle")}
    assert marks == {
        "trial 1: 90.0 % in INT8, drop 0.0300": "over",
        "trial 2: 70.0 % in INT8, drop 0.0010": "within",
        "trial 3: 80.0 % in INT8, drop 0.0020": "winner",
    }
    assert (other.plot, other.more) == ("", "No trial is within the budget.")
    relative, _ = sections(replace(content, trials=trials, budget=Budget("val/acc", 0.01, True, "max")))
    assert cells(relative, "drop of val/acc")[0] == "3.00 %"


def test_figures_that_are_none_are_left_out_of_plots(content: Manifest) -> None:
    trials = tuple(Trial("static", (), share, drop, False) for share, drop in ((nan, 0.1), (0.5, nan), (2.0, 0.1)))
    ranking = tuple(Sensitivity("a", "b", "", share, share) for share in (1e308, 1e308, nan))
    costs, search = sections(replace(content, sensitivity={"static": ranking}, trials=trials))
    assert search.plot == ""
    assert cells(costs, "cumulative")[2] == "–"
