"""Without a disk, a folder, memory or descriptors: a named outcome, the rest delivered, and nothing left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import commands
import pytest

import lq_plugin

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="limits of processes, and what they use, as Linux has it"
)
NO_ROOM = {  # what the manifest says of static/pt2, or stderr where none can be written
    "no_memory": "can't allocate memory",
    "full_disk": "File too large",
    "no_folder": "Not a directory",
}


@pytest.mark.parametrize("what", NO_ROOM)
def test_what_cannot_be_made_is_named_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    done = commands.run("limited.py", what, str(tmp_path), cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr  # training itself was finished
    assert NO_ROOM[what] in done.stderr
    place = tmp_path / "quantized" / "manifest.json"
    if what == "no_folder":
        assert f"There is no manifest: {place} could not be written" in "".join(done.stdout.split("\n"))
        assert [path.name for path in tmp_path.iterdir()] == ["quantized"]
        return
    static, *others = json.loads(place.read_text())["artifacts"]
    assert static["status"] == "failed"
    assert NO_ROOM[what] in static["error"]
    made = {place.parent / entry["path"] / name for entry in others if entry["path"] for name in entry["sha256"]}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {place, *made}


def test_with_few_descriptors_all_is_made_but_what_needs_more(tmp_path: Path) -> None:
    done = commands.run("limited.py", "few_descriptors", str(tmp_path), cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    static, _, dynamic = json.loads((tmp_path / "quantized" / "manifest.json").read_text())["artifacts"]
    assert {static["status"], dynamic["status"]} <= {"ok", "over_budget"}
    assert static["error"] == "the worker process could not be started: [Errno 24] Too many open files"
    assert (static["latency_ms"], dynamic["latency_ms"]["median"] > 0) == (None, True)
    assert lq_plugin.load(tmp_path / "quantized" / static["path"])
