"""Without a folder, or with few descriptors: a named outcome, the rest delivered, and nothing left behind.

A full disk is in test_after_training.py; ``make test-long`` goes through every limit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import CompletedProcess

import commands
import pytest
from limited import outcomes

import lq_plugin

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process uses")


def run(what: str, room: int, folder: Path) -> CompletedProcess[str]:
    """A fit in a process of its own, which ends well whatever is missing when training is over."""
    done = commands.run("limited.py", what, str(room), str(folder), cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return done


def test_without_a_folder_all_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    done = run("no_folder", 0, tmp_path)
    place = tmp_path / "quantized" / "manifest.json"
    for label in ("static/pt2", "dynamic/torch"):
        assert f"{label} failed. NotADirectoryError" in done.stderr
    assert f"{str(place)!r} cannot be written" in done.stderr
    assert "of an earlier run" not in done.stderr
    assert f"There is no manifest: {place} could not be written" in "".join(done.stdout.split("\n"))
    assert [path.name for path in tmp_path.iterdir()] == ["quantized"]


def test_with_few_descriptors_all_is_made_but_what_needs_more(tmp_path: Path) -> None:
    done = run("descriptors", 4, tmp_path)
    assert len(outcomes(tmp_path, ("Too many open files",), done.stderr)) == 3
    static, _, dynamic = json.loads((tmp_path / "quantized" / "manifest.json").read_text())["artifacts"]
    assert {static["status"], dynamic["status"]} <= {"ok", "over_budget"}
    assert static["error"] == "the worker process could not be started: [Errno 24] Too many open files"
    assert (static["latency_ms"], dynamic["latency_ms"]["median"] > 0) == (None, True)
    assert lq_plugin.load(tmp_path / "quantized" / static["path"])
