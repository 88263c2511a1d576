"""How a command ends, whatever it is told and whatever lies in the folder of its sweep."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from damage.manifests import NASTY, good

from lq_plugin.apps.command import _reason_of_all, _write_leaderboard, one_line
from lq_plugin.errors import ConfigError


def job(folder: Path, failure: str | None) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / "quantized").mkdir()
    (folder / "quantized" / "manifest.json").write_text(json.dumps(good()))
    if failure is not None:
        (folder / "failure.json").write_text(failure)
    return folder


def test_a_mistake_is_one_line_of_text() -> None:
    assert one_line(ConfigError("name: '\x1b[2J[red]'\n  is unknown")) == r"name: '\x1b[2J[red]' is unknown"
    assert one_line(ConfigError(NASTY)).isprintable()


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ('{"error": "why\\n not"}', "why not"),
        ("[" * 100_000, "failure.json is nested too deeply"),
        ("{", "failure.json is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
        ('{"reason": 1}', "failure.json holds no text under 'error'"),
    ],
)
def test_the_reason_why_a_whole_sweep_failed_may_be_damaged(failure: str, said: str, tmp_path: Path) -> None:
    job(tmp_path / "0", '{"error": "another"}')
    os.utime(tmp_path / "0" / "failure.json", (1, 1))
    job(tmp_path / "1", failure)
    reason = _reason_of_all(tmp_path)
    assert reason is not None
    assert reason.startswith(said)
    job(tmp_path / "2", None)
    assert _reason_of_all(tmp_path) is None


def test_the_leaderboard_of_a_sweep_survives_one_bad_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(tmp_path / "0", None)
    (job(tmp_path / "1", None) / "quantized" / "manifest.json").write_text("[" * 100_000)
    _write_leaderboard(tmp_path)
    assert capsys.readouterr().out == f"lq_plugin: leaderboard in {tmp_path / 'leaderboard.html'}\n"
    found = json.loads((tmp_path / "leaderboard.json").read_text())
    assert {row["run"] for row in found["artifacts"]} == {"0"}
    assert found["failed"] == [{"run": "1", "overrides": [], "error": "manifest.json is nested too deeply"}]


def test_a_leaderboard_that_cannot_be_written_does_not_end_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(tmp_path / "0", None)
    (tmp_path / "leaderboard.json").mkdir()
    _write_leaderboard(tmp_path)
    assert capsys.readouterr().out.startswith("lq_plugin: no leaderboard: [Errno 21] Is a directory")
