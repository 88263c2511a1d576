"""lq-report as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from damage.manifests import good
from tiny import Tiny, fit

from lq_plugin import ArtifactExport, Budget, Int8Evaluation, StaticQuantization
from lq_plugin.apps.report import SHOWN, main
from lq_plugin.evaluation.latency import Latency

FILES = ["leaderboard.csv", "leaderboard.html", "leaderboard.json"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a real run, a job that stopped and a manifest that was cut off."""
    folder = tmp_path_factory.mktemp("runs")
    fit(
        folder / "0",
        Tiny(),
        StaticQuantization(),
        ArtifactExport(["onnx"], placement="runtime"),
        Int8Evaluation(budget=Budget("val/acc", max_drop=1.0), latency=Latency(rounds=1, seconds=0.01)),
    )
    (folder / "1").mkdir()
    (folder / "1" / "failure.json").write_text('{"error": "ConfigError: observer: \'bad\' is unknown."}')
    (folder / "2" / "quantized").mkdir(parents=True)
    text = (folder / "0" / "quantized" / "manifest.json").read_text()
    (folder / "2" / "quantized" / "manifest.json").write_text(text[: len(text) // 2])
    return folder


def test_a_user_gets_a_table_and_three_files(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lq_plugin.apps.report", "."], cwd=runs, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = [line for line in done.stdout.splitlines() if "★●" in line]
    assert "static/onnx" in line
    assert line.rstrip().endswith(" ok")
    assert "Run 1: failed. ConfigError: observer: 'bad' is unknown." in done.stdout
    assert "Run 2: failed. manifest.json is not valid JSON (" in done.stdout
    assert "leaderboard.json, .csv and .html" in done.stdout
    assert sorted(file.name for file in runs.glob("leaderboard.*")) == FILES


def test_several_folders_make_one_leaderboard_elsewhere(runs: Path, tmp_path: Path) -> None:
    main([str(runs / "0"), str(runs / "1"), "--out", str(tmp_path / "out")])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES
    found = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert [row["run"] for row in found["artifacts"]] == ["0"]
    assert [job["run"] for job in found["failed"]] == ["1"]
    assert not list((runs / "0").glob("leaderboard.*"))


def test_a_long_table_is_cut_and_says_so(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content: dict[str, Any] = json.loads((runs / "0" / "quantized" / "manifest.json").read_text())
    (entry,) = content["artifacts"]
    entry["speedup"] = {"vs_torch_fp32": 2.0, "vs_best_fp32": 2.0}
    content["artifacts"] = [{**entry, "candidate": f"[red]{n}", "error": "why"} for n in range(SHOWN + 3)]
    (tmp_path / "quantized").mkdir()
    (tmp_path / "quantized" / "manifest.json").write_text(json.dumps(content))
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count(". why") == SHOWN + 3  # a line for each error
    assert len([line for line in printed.splitlines() if "[red]" in line and line.rstrip().endswith(" ok")]) == SHOWN
    assert "… and 3 more in the files." in printed


def test_a_single_run_tells_what_int8_costs_and_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("0", "1"):
        (tmp_path / run / "quantized").mkdir(parents=True)
        (tmp_path / run / "quantized" / "manifest.json").write_text(json.dumps(good()))
    main([str(tmp_path / "0")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "net.0 conv2d 90.0 % 90.0 %" in printed
    assert "static smoothing refused torch 9.0 9.1 0.0 too little" in printed
    assert "1 1 50.0 % 2.00 % within 1.5" in printed
    assert "Trial 1 was chosen; it leaves float: net.0." in printed
    page = (tmp_path / "0" / "leaderboard.html").read_text("utf-8")
    assert page.count('<svg class="plot" role="img"') == 2
    assert "<details open>" in page
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "90.0 %" not in printed
    assert "What INT8 costs in each run, its algorithms and its searches: in the page." in printed
    assert (tmp_path / "leaderboard.html").read_text("utf-8").count("<details>") == 2


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("empty", "empty: there is no run below. A run is a folder with"),
        ("nowhere", "nowhere: there is no such folder"),
        ("\x1b[2J\r[red]\udcff", r"\x1b[2J [red]\udcff: there is no such folder"),
    ],
)
def test_without_runs_it_fails_in_one_line(argument: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / argument)])
    message = str(stopped.value.code)
    assert message.startswith("lq-report: ")
    assert said in message
    assert message.isprintable()
    assert not list(tmp_path.rglob("leaderboard.*"))


def test_a_folder_that_cannot_be_written_is_one_line(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"lq-report: .*file"):
        main([str(runs), "--out", str(tmp_path / "file")])


def test_the_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "lq-report outputs multirun --out report" in printed
    assert max(map(len, printed.splitlines())) <= 120
