"""Thousands of damaged files: each is read, or refused by a named error, in bounded time and memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from damage.cases import CASES, specimens
from damage.harness import Report, run
from damage.selftest import CASES as SELFTEST

LARGEST_GROWTH = 512  # MiB


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    good = tmp_path_factory.mktemp("specimens")
    specimens(good)
    made = run("damage.cases", good, tmp_path_factory.mktemp("scratch"))
    print(made)
    return made


def test_the_harness_tells_what_becomes_of_a_case(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    report = run("damage.selftest", tmp_path, tmp_path, patience=2)
    assert report.outcomes == {case.name: case.name.split()[0] for case in SELFTEST}
    assert report.messages["unnamed memory"].startswith("MemoryError")
    assert report.messages["crashed"] == "exit code -6"


def test_thousands_of_cases_came_to_an_end(report: Report) -> None:
    assert len(report.outcomes) == len(CASES) > 2_000


def test_damage_is_refused_by_named_errors_alone(report: Report) -> None:
    assert report.those("unnamed") == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_damage_reaches_the_runtimes(runtime: str, report: Report) -> None:
    """Were all of it stopped by our own checks, the runtimes would not have been tried."""
    assert len([case for case in report.those("refused") if f"is refused by {runtime} (" in case]) > 20
    assert report.those("read")


def test_nothing_hangs_and_memory_is_bounded(report: Report) -> None:
    assert report.those("hung") == []
    assert report.growth < LARGEST_GROWTH


def test_crashes_are_those_of_a_runtime_on_a_model_that_was_signed_again(report: Report) -> None:
    crashed = report.those("crashed")
    print("\n".join(crashed))
    runtime = re.compile(r"(onnx|openvino|torch), (fields|values|.*signed again) \d+: ")
    assert [name for name in crashed if not runtime.match(name)] == []
