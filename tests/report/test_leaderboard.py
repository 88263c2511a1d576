"""The leaderboard over real manifests, and over copies of them with what a sweep may bring."""

from __future__ import annotations

import copy
import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tiny import Tiny, fit

from lq_plugin import ArtifactExport, Budget, Int8Evaluation, StaticQuantization
from lq_plugin.errors import ConfigError, MissingExtraError
from lq_plugin.evaluation.latency import Latency
from lq_plugin.report.board import Leaderboard, columns
from lq_plugin.report.leaderboard import distinctions, leaderboard, save, write

METRIC = "val/acc"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one run of two candidates."""
    folder = tmp_path_factory.mktemp("real")
    fit(
        folder,
        Tiny(),
        StaticQuantization(),
        StaticQuantization(observer="minmax", name="minmax"),
        ArtifactExport(["onnx"], placement="runtime"),
        Int8Evaluation(budget=Budget(METRIC, max_drop=1.0, mode="max"), latency=Latency(rounds=1, seconds=0.01)),
    )
    return folder


@pytest.fixture(scope="module")
def content(real: Path) -> dict[str, Any]:
    return dict(json.loads((real / "quantized" / "manifest.json").read_text()))


def put(
    run: Path, content: dict[str, Any], *entries: dict[str, Any], overrides: str | None = None, job: str | None = None
) -> Path:
    """Write a copy of a manifest, with its artifacts replaced by the given ones, as another run."""
    (run / "quantized").mkdir(parents=True)
    text = json.dumps({**content, "artifacts": list(entries) or content["artifacts"]})
    (run / "quantized" / "manifest.json").write_text(text)
    if overrides is not None:
        (run / ".hydra").mkdir()
        (run / ".hydra" / "overrides.yaml").write_text(overrides)
    if job is not None:
        (run / "job.json").write_text(json.dumps({"job": job}))
    return run


def stop(run: Path, job: str) -> Path:
    """Make a run whose job was killed."""
    run.mkdir()
    (run / "failure.json").write_text('{"error": "the job did not finish"}')
    (run / "job.json").write_text(json.dumps({"job": job}))
    return run


def entry(
    content: dict[str, Any], name: str, value: float | None, ms: float | None, size: int | None, status: str = "ok"
) -> dict[str, Any]:
    """Copy the first artifact, with another name and other figures."""
    made = copy.deepcopy(content["artifacts"][0])
    fp32 = content["fp32"]["metrics"][METRIC]
    made.update(candidate=name, status=status, size_bytes=size, metrics={}, delta={})
    if value is not None:
        made.update(metrics={METRIC: value}, delta={METRIC: value - fp32})
    made["latency_ms"] = None if ms is None else {**made["latency_ms"], "median": ms}
    made["speedup"] = None if ms is None else {"vs_torch_fp32": 4 / ms, "vs_best_fp32": 2 / ms}
    return dict(made)


def setting(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Copy a manifest with other options of its budget, or another CPU."""
    made = copy.deepcopy(content)
    made["environment"]["cpu"] = changes.pop("cpu", made["environment"]["cpu"])
    made["budget"].update(changes)
    return made


def front(board: Leaderboard) -> list[str]:
    return [row.entry.candidate for row in board.artifacts if row.pareto]


def winners(board: Leaderboard) -> list[str]:
    return [f"{row.run}/{row.entry.candidate}" for row in board.artifacts if row.winner]


def notes(board: Leaderboard) -> list[str]:
    """All but the one that copies of a manifest have no artifacts beside them."""
    return [note for note in board.notes if "only their figures are left" not in note]


def test_a_job_of_several_sweeps_is_listed_once_unless_it_was_measured_anew(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    stop(tmp_path / "1", "a")
    for run in ("2", "10"):
        put(tmp_path / run, content, job="a")
    put(tmp_path / "3", content, entry(content, "measured anew", 0.5, 1.0, 9), job="a")
    put(tmp_path / "4", content, job="another")
    stop(tmp_path / "11", "a")
    stop(tmp_path / "12", "killed twice")
    stop(tmp_path / "13", "killed twice")
    board = leaderboard(tmp_path)
    assert list(board.manifests) == ["3", "4", "10"]
    assert [failure.run for failure in board.failed] == ["11", "13"]
    (note,) = (note for note in board.notes if note.startswith("Listed once"))
    assert note.endswith("ran the job again or took over its results: 1 (now 11), 2 (now 10), 12 (now 13).")


def test_a_run_that_does_not_say_which_job_it_is_is_always_listed(tmp_path: Path, content: dict[str, Any]) -> None:
    stop(tmp_path / "1", "a")
    for said in ("", "[]", '{"job": null}', "{", '{"job": "a", "job": "b"}'):
        (stop(tmp_path / f"0{len(said)}", "a") / "job.json").write_text(said)
    put(tmp_path / "2", content, job="a")
    assert len(leaderboard(tmp_path).failed) == 5


def test_a_row_says_what_the_manifest_says(real: Path, content: dict[str, Any]) -> None:
    board = leaderboard(real)
    assert [row.label for row in board.artifacts] == ["static/onnx", "minmax/onnx"]
    budget = Budget(**content["budget"])
    for row, made in zip(board.artifacts, content["artifacts"], strict=True):
        for key in ("candidate", "method", "format", "runtime", "status", "error", "metrics", "delta", "size_bytes"):
            assert columns(row)[key] == made[key], key
        assert (row.run, row.cpu, row.entry.sqnr_db) == (real.name, content["environment"]["cpu"], made["sqnr_db"])
        assert (row.budget.metric, row.budget.mode, row.budget.max_drop) == (METRIC, "max", 1.0)
        value, delta = made["metrics"][METRIC], made["delta"][METRIC]
        assert row.drop == pytest.approx(budget.drop(value - delta, value))
        assert (row.entry.median, row.batch_size) == (made["latency_ms"]["median"], 1)
        assert row.speedup.vs_torch_fp32 == made["speedup"]["vs_torch_fp32"]
        assert row.speedup.vs_best_fp32 == made["speedup"]["vs_best_fp32"]
        assert row.size_share == made["size_bytes"] / content["fp32"]["size_bytes"]
        assert {"val/acc", "test/acc"} <= row.entry.metrics.keys()
    fastest = min(content["artifacts"], key=lambda made: made["latency_ms"]["median"])
    assert [row.label for row in board.artifacts if row.winner] == [f"{fastest['candidate']}/onnx"]
    assert content["selected"] in (f"{fastest['candidate']}/onnx", None)  # where FP32 is faster
    assert {row.entry.runtime: row.entry.median for row in board.fp32} == content["fp32"]["latency_ms"]
    assert all(row.entry.metrics == content["fp32"]["metrics"] for row in board.fp32)
    assert board.failed == ()


def test_the_manifest_holds_what_was_observed_of_every_quantized_value(content: dict[str, Any]) -> None:
    assert content["ranges"].keys() == {"static", "minmax"}
    for made in content["ranges"]["static"]:
        assert made["lowest"] <= made["high"] <= made["highest"]
        assert 0 <= made["clipped"] < 0.5
        assert 1 <= len(made["bins"]) <= 32
        assert "onnxruntime" in made["runtimes"]
    assert {made["name"] for made in content["ranges"]["minmax"]} == {m["name"] for m in content["ranges"]["static"]}
    assert all((made["bins"], made["clipped"]) == ([], None) for made in content["ranges"]["minmax"])


def test_the_front_is_of_accuracy_latency_and_size(tmp_path: Path, content: dict[str, Any]) -> None:
    put(
        tmp_path / "run",
        content,
        entry(content, "accurate", 0.9, 3.0, 300),
        entry(content, "fast", 0.7, 1.0, 300, "over_budget"),
        entry(content, "small", 0.7, 3.0, 100),
        entry(content, "dominated", 0.7, 3.0, 300),
        entry(content, "equal", 0.9, 3.0, 300),
        entry(content, "failed", 0.95, 0.1, 1, "failed"),
        entry(content, "untimed", 0.99, None, 10),
        entry(content, "nan", None, 0.1, 10),
        entry(content, "unmeasured", None, None, None, "unsupported"),
    )
    board = leaderboard(tmp_path)
    assert front(board) == ["accurate", "fast", "small", "equal"]
    assert [row.entry.candidate for row in board.ranked][:3] == ["nan", "accurate", "small"]
    assert board.ranked[-1].entry.status == "unsupported"
    assert write(tmp_path).read_text().count('class="front" title="on the Pareto front"') == 4


@pytest.mark.parametrize(
    ("mode", "on_it"),
    [("max", ["high"]), ("min", ["low"]), (None, ["same"])],
)
def test_the_front_knows_the_metrics_direction(
    mode: str | None, on_it: list[str], tmp_path: Path, content: dict[str, Any]
) -> None:
    fp32 = content["fp32"]["metrics"][METRIC]
    values = {"high": fp32 + 0.2, "same": fp32 + 0.01, "low": fp32 - 0.2}
    entries = [entry(content, name, value, 1.0, 100) for name, value in values.items()]
    put(tmp_path / "run", setting(content, mode=mode), *entries)
    board = leaderboard(tmp_path)
    assert front(board) == on_it
    assert any("every difference from FP32 counts as a drop" in note for note in board.notes) == (mode is None)


def test_a_metric_that_is_no_number_is_shown_and_not_compared(tmp_path: Path, content: dict[str, Any]) -> None:
    bad = entry(content, "bad", 0.9, 0.1, 10, "over_budget")
    bad.update(metrics={METRIC: "inf", "val/loss": None}, delta={METRIC: "inf", "val/loss": None})
    put(tmp_path / "run", content, bad, entry(content, "good", 0.5, 1.0, 100))
    board = leaderboard(tmp_path)
    assert front(board) == ["good"]
    assert board.artifacts[0].drop is None
    assert ">inf<" in write(tmp_path).read_text()


def test_the_winner_is_the_fastest_within_its_own_budget_over_all_runs(tmp_path: Path, content: dict[str, Any]) -> None:
    strict, loose = setting(content, max_drop=0.01), setting(content, max_drop=0.9)
    put(tmp_path / "a", strict, entry(content, "x", 0.9, 2.0, 100), entry(content, "y", 0.5, 0.5, 100, "over_budget"))
    put(tmp_path / "b", loose, entry(content, "x", 0.5, 1.0, 100))
    board = leaderboard(tmp_path)
    assert winners(board) == ["b/x"]
    assert [row.budget.max_drop for row in board.artifacts] == [0.01, 0.01, 0.9]
    assert front(board) == ["x", "y"]  # 0.5 at 0.5 ms dominates 0.5 at 1.0 ms
    assert notes(board) == []


@pytest.mark.parametrize("key", ["cpu", "threads", "batch_size", "metric"])
def test_what_was_measured_in_another_way_is_not_compared(key: str, tmp_path: Path, content: dict[str, Any]) -> None:
    given: dict[str, Any] = {"cpu": "Other CPU", "threads": 7, "batch_size": 64, "metric": "val/loss"}
    slow, fast = entry(content, "slow", 0.8, 2.0, 200), entry(content, "fast", 0.9, 1.0, 100)
    for made in (slow, fast):
        made["metrics"]["val/loss"], made["delta"]["val/loss"] = 1.0, 0.0
    if key in fast["latency_ms"]:
        fast["latency_ms"][key] = given[key]
    put(tmp_path / "a", content, slow)
    put(tmp_path / "b", setting(content, **({key: given[key]} if key in ("cpu", "metric") else {})), fast)
    board = leaderboard(tmp_path)
    assert front(board) == ["slow", "fast"]
    assert winners(board) == ["a/slow", "b/fast"]
    (note,) = notes(board)
    assert str(given[key]) in note
    assert "only equals are compared" in note
    page = write(tmp_path).read_text()
    assert page.count("Latency against accuracy: ") == 2
    assert ("Other CPU</td>" in page) == (key == "cpu")


def test_different_models_and_slow_winners_are_noted(tmp_path: Path, content: dict[str, Any]) -> None:
    larger = {**content, "fp32": {**content["fp32"], "size_bytes": 10**6}}
    put(tmp_path / "a", content, entry(content, "x", 0.9, 4.0, 100))
    put(tmp_path / "b", larger, entry(content, "x", 0.9, 5.0, 100))
    models, slower = notes(leaderboard(tmp_path))
    assert "different models" in models
    assert "1000000 bytes" in models
    assert slower == "The winner x/onnx of run a is slower than the fastest FP32 runtime."


def test_runs_are_told_apart_by_overrides_else_by_options(tmp_path: Path, content: dict[str, Any]) -> None:
    for number in (10, 2):
        put(tmp_path / "sweep" / str(number), content, overrides=f"- recipe=r\n- +model.width={number}\n")
    other = copy.deepcopy(content)
    other["config"]["quantization"]["static"]["observer"]["name"] = "percentile"
    other["config"]["export"]["output_dir"] = "elsewhere"
    put(tmp_path / "python", other)
    board = leaderboard(tmp_path)
    assert list(dict.fromkeys(row.run for row in board.artifacts)) == ["python", "sweep/2", "sweep/10"]
    assert board.artifacts[-1].overrides == ("recipe=r", "+model.width=10")
    option = "quantization.static.observer.name"
    assert [row.config[option] for row in board.artifacts[::2]] == ["percentile", "histogram", "histogram"]
    assert board.artifacts[0].config.keys() == {option}
    assert distinctions(board)["python"] == f"{option}=percentile"
    assert distinctions(leaderboard(tmp_path / "sweep")) == {"2": "+model.width=2", "10": "+model.width=10"}


def test_the_configuration_of_a_whole_run_includes_all_options(tmp_path: Path, content: dict[str, Any]) -> None:
    for width in (8, 16):
        config = {**content["config"], "run": {"model": {"_target_": "my.Model", "width": width}}}
        put(tmp_path / str(width), {**content, "config": config})
    board = leaderboard(tmp_path)
    assert [row.config for row in board.artifacts[::2]] == [{"model.width": 8}, {"model.width": 16}]
    assert board.artifacts[0].model.startswith("my.Model of ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema_version": 1, "fp32": {', "manifest.json is not valid JSON ("),
        ("", "manifest.json is not valid JSON ("),
        ("[]", "manifest.json: its content is an empty list, not an object"),
        ('{"schema_version": 1}', "manifest.json: fp32 is missing"),
        ('{"schema_version": 9}', "its schema_version 9 is newer than 1, the newest that this lq_plugin"),
        (b"\xff\xfe", "manifest.json is not valid JSON ("),
    ],
)
def test_a_manifest_that_cannot_be_read_is_a_failed_job(
    text: str | bytes, said: str, tmp_path: Path, content: dict[str, Any]
) -> None:
    put(tmp_path / "good", content)
    broken = put(tmp_path / "broken", content, overrides="[observer=minmax]")
    (broken / "quantized" / "manifest.json").write_bytes(text.encode() if isinstance(text, str) else text)
    board = leaderboard(tmp_path)
    (failed,) = board.failed
    assert (failed.run, failed.overrides) == ("broken", ("observer=minmax",))
    assert said in failed.error
    assert "\n" not in failed.error
    assert {row.run for row in board.artifacts} == {"good"}


def test_a_failed_job_is_listed_with_its_reason(tmp_path: Path) -> None:
    reasons = {"0": '{"error": "ConfigError: <script>alert(1)</script>\\n no"}', "1": "{", "2": '{"cause": 1}'}
    for name, text in reasons.items():
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text("- observer=bad" if name == "0" else "a: [")
        (tmp_path / name / "failure.json").write_text(text)
    board = leaderboard(tmp_path)
    assert board.failed[0].error == "ConfigError: <script>alert(1)</script> no"
    assert board.failed[0].overrides == ("observer=bad",)
    assert [job.error.partition(":")[0] for job in board.failed[1:]] == [
        "failure.json is not valid JSON (Expecting property name enclosed in double quotes",
        "failure.json holds no text under 'error'",
    ]
    assert board.failed[1].overrides == ("overrides.yaml is not a list of overrides",)
    page = write(tmp_path).read_text()
    assert page.count("<script") == 1  # ours
    assert "&lt;script&gt;alert(1)" in page
    assert "<svg" not in page


def test_a_run_that_was_not_evaluated_has_rows_and_no_winner(tmp_path: Path, real: Path) -> None:
    fit(tmp_path / "run", Tiny(), StaticQuantization(), ArtifactExport(["onnx"]))
    board = leaderboard(tmp_path)
    (row,) = board.artifacts
    assert (row.entry.status, row.entry.median, row.pareto, row.winner, row.size_share) == (
        "not_evaluated",
        None,
        False,
        False,
        None,
    )
    assert board.notes == ("No artifact was both timed and within its budget, so there is no winner.",)
    assert "static/onnx" in write(tmp_path).read_text()


def damaged(run: Path) -> Path:
    """The file of the fastest artifact."""
    content = json.loads((run / "quantized" / "manifest.json").read_text())
    fastest = min(content["artifacts"], key=lambda made: made["latency_ms"]["median"])
    return run / "quantized" / fastest["path"] / "model.onnx"


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def elsewhere(file: Path) -> None:
    file.rename(file.parents[3] / "model.onnx")
    file.symlink_to(file.parents[3] / "model.onnx")


def folder_elsewhere(file: Path) -> None:
    file.parent.rename(file.parents[3] / "onnx")
    file.parent.symlink_to(file.parents[3] / "onnx")


def endless(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (flipped, "model.onnx has a different sha256"),
    "truncated": (lambda file: os.truncate(file, 100), "its files have 100 bytes instead"),
    "sparse": (lambda file: os.truncate(file, 1 << 40), "its files have 1099511627776 bytes instead"),
    "gone": (Path.unlink, "model.onnx is missing"),
    "pipe": (endless, "model.onnx is not a regular file"),
    "link": (elsewhere, "model.onnx is a link; put the file itself in its place"),
    "linked folder": (folder_elsewhere, "onnx is a link; put the folder itself in its place"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_an_artifact_that_is_not_what_was_measured_is_no_winner(
    change: Callable[[Path], object], said: str, real: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(real, tmp_path / "run")
    before = {row.label: row for row in leaderboard(run).artifacts}
    assert {row.files for row in before.values()} == {"as measured"}
    (winner,) = [row.label for row in before.values() if row.winner]
    change(damaged(run))
    after = {row.label: row for row in leaderboard(run).artifacts}
    row = after.pop(winner)
    assert (row.entry.status, row.files, row.winner, row.pareto) == ("failed", "changed", False, False)
    assert row.entry.error is not None
    assert row.entry.error.startswith("it is not what was measured: ")
    assert said in row.entry.error
    assert [(other.entry.status, other.files, other.winner) for other in after.values()] == [
        ("ok", "as measured", True)
    ]


def test_an_artifact_that_is_gone_keeps_its_figures_and_is_named(real: Path, tmp_path: Path) -> None:
    run = shutil.copytree(real, tmp_path / "run")
    shutil.rmtree(run / "quantized" / "minmax")
    board = leaderboard(run)
    assert {row.entry.candidate: row.files for row in board.artifacts} == {"static": "as measured", "minmax": "missing"}
    assert "The files of 1 artifact are gone; only their figures are left: minmax/onnx of run run." in board.notes


@pytest.mark.parametrize("path", ["../real/quantized/static/onnx", "/etc", "static/../../x", "", "a\\b", "c:x", 7])
def test_a_path_that_leads_out_of_the_run_is_refused(path: Any, tmp_path: Path, content: dict[str, Any]) -> None:
    put(tmp_path / "run", content, {**content["artifacts"][0], "path": path})
    board = leaderboard(tmp_path)
    assert board.artifacts == ()
    assert "artifacts[0].path is" in board.failed[0].error


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/../../b", ".."])
def test_a_file_outside_of_its_artifact_is_refused(name: str, tmp_path: Path, content: dict[str, Any]) -> None:
    put(tmp_path / "run", content, {**content["artifacts"][0], "sha256": {name: "0" * 64}})
    assert "a key of artifacts[0].sha256 is" in leaderboard(tmp_path).failed[0].error


def test_a_run_counts_once_however_often_it_is_named(real: Path) -> None:
    once = leaderboard(real)
    assert leaderboard(real, real.parent / "." / real.name, real / "quantized") == once


def test_without_a_run_there_is_no_leaderboard(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"there is no run below. A run is a folder with quantized/manifest\.json"):
        leaderboard(tmp_path)
    with pytest.raises(ConfigError, match="nowhere: there is no such folder"):
        leaderboard(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no run below"):
        write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


class Balanced(HTMLParser):
    """Collects the tags, and knows that each is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_the_page_needs_nothing_else_and_marks_the_front(tmp_path: Path, content: dict[str, Any]) -> None:
    put(
        tmp_path / "a&<b>",
        content,
        entry(content, "accurate", 0.9, 300.0, 300),
        entry(content, "fast", 0.8, 0.2, 300),
        entry(content, "dominated", 0.7, 300.0, 300),
        entry(content, "untimed", 0.7, None, 300),
        overrides="['x=<i>']",
    )
    text = write(tmp_path).read_text(encoding="utf-8")
    page = Balanced()
    page.feed(text)
    assert page.stack == []
    assert not {"link", "img", "iframe", "i"} & {tag for tag, _ in page.seen}
    assert not any(key in ("src", "style") or key.startswith("on") for _, attributes in page.seen for key in attributes)
    assert "://" not in text
    assert "a&amp;&lt;b&gt;" in text
    plot = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    assert sorted(circle.attrib["class"] for circle in plot.iter("circle")) == ["front", "rest", "winner"]
    assert 1 <= len(list(plot.iter("rect"))) <= len(content["fp32"]["latency_ms"])  # near ones are one
    best, fast = (
        next(c for c in plot.iter("circle") if (c.findtext("title") or "").startswith(f"a&<b>: {name}/"))
        for name in ("accurate", "fast")
    )
    assert float(best.attrib["cy"]) < float(fast.attrib["cy"])
    assert float(best.attrib["cx"]) > float(fast.attrib["cx"])
    assert all(64 <= float(c.attrib["cx"]) <= 936 and 36 <= float(c.attrib["cy"]) <= 348 for c in plot.iter("circle"))
    labels = [label.text for label in plot.iter("text")]
    assert {"1", "10", "100", "0.5", "budget"} <= set(labels)


def test_the_json_holds_everything(tmp_path: Path, content: dict[str, Any]) -> None:
    put(tmp_path / "run", content)
    (tmp_path / "failure.json").write_text('{"error": "why"}')
    board = leaderboard(tmp_path)
    save(board, tmp_path / "new" / "folder")
    found = json.loads((tmp_path / "new" / "folder" / "leaderboard.json").read_text())
    assert found.keys() == {"schema_version", "artifacts", "fp32", "failed", "notes"}
    assert found["schema_version"] == 1
    for key in ("artifacts", "fp32"):
        assert found[key] == json.loads(json.dumps([columns(row) for row in getattr(board, key)]))
    assert found["failed"] == [{"run": tmp_path.name, "overrides": [], "error": "why"}]


def test_the_csv_has_one_flat_line_per_artifact(tmp_path: Path, content: dict[str, Any]) -> None:
    put(tmp_path / "a", content, overrides="['+model.width=64', 'x=[1,2]']")
    failed = entry(content, "broken", None, None, None, "failed")
    put(tmp_path / "b", content, {**failed, "error": 'a "reason",\nin two lines'})
    board = leaderboard(tmp_path)
    save(board, tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["candidate"] for line in lines] == [row.entry.candidate for row in board.artifacts]
    assert lines[0]["overrides"] == " +model.width=64 x=[1,2]"  # which no spreadsheet takes for a formula
    assert float(lines[0]["metrics.val/acc"]) == content["artifacts"][0]["metrics"]["val/acc"]
    assert float(lines[0]["delta.test/loss"]) == content["artifacts"][0]["delta"]["test/loss"]
    assert (lines[-1]["error"], lines[-1]["latency_ms"]) == ('a "reason",\nin two lines', "")
    assert all(None not in line and None not in line.values() for line in lines)


def test_a_file_is_replaced_at_once_or_stays(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a", content)
    assert write(tmp_path) == tmp_path / "leaderboard.html"
    page = (tmp_path / "leaderboard.html").read_bytes()
    put(tmp_path / "b", content)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with (tmp_path / "leaderboard.json").open() as reader:
        with pytest.raises(MissingExtraError, match=r"lq_plugin\[report\]"):
            write(tmp_path)
        assert len(json.load(reader)["artifacts"]) == 2  # who had the file open reads the old one to its end
    assert (tmp_path / "leaderboard.html").read_bytes() == page
    assert len(json.loads((tmp_path / "leaderboard.json").read_text())["artifacts"]) == 4
    assert sorted(file.name for file in tmp_path.glob("*leaderboard*")) == [
        "leaderboard.csv",
        "leaderboard.html",
        "leaderboard.json",
    ]
