"""The pipeline without a Trainer: a step that fails costs only what needs it, and an interrupted run continues."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from filelock import FileLock, Timeout
from tiny import Images, Tiny, images
from torch.utils.data import DataLoader

from lq_plugin import Budget, Scheme, exporting, pipeline
from lq_plugin.artifacts.description import Artifact
from lq_plugin.checkpoints import LIVE, Checkpoint
from lq_plugin.checksums import of_file
from lq_plugin.coverage import Duration
from lq_plugin.errors import CalibrationError, UnsupportedError
from lq_plugin.evaluation import compare, latency, placing
from lq_plugin.evaluation.compare import Protocol, Subject
from lq_plugin.evaluation.latency import Latency, Timing
from lq_plugin.evaluation.loop import Data
from lq_plugin.graph.observation import ObservationPlan
from lq_plugin.jobs import DynamicJob, Job, StaticJob
from lq_plugin.pipeline import finish
from lq_plugin.plan import Plan
from lq_plugin.report import manifest, run_page
from lq_plugin.report.manifest import Manifest
from lq_plugin.source import Source
from lq_plugin.steps import Step, attempt
from lq_plugin.store import Store

TESTS = Path(__file__).parent
STATIC, DYNAMIC = Scheme(observer="minmax"), Scheme("dynamic")


def source(seed: int = 0, data: Any = None) -> Source:
    torch.manual_seed(seed)
    loader = Images().val_dataloader() if data is None else DataLoader(data, 8)
    batches = Data(loaders={"validate": loader})
    return Source(Tiny(), None, lambda: Checkpoint(LIVE, 0), batches)


def jobs(seed: int = 0) -> tuple[Job, ...]:
    options: Any = {"source": source(seed), "options": {}}
    static = StaticJob(name="static", scheme=STATIC, plan=ObservationPlan(STATIC), **options)
    return static, DynamicJob(name="dynamic", scheme=DYNAMIC, **options)


def plan(folder: Path, seed: int = 0) -> Plan:
    return Plan(jobs(seed), folder / "quantized", ["onnx"], Protocol(["validate"], latency=None))


def written(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "quantized" / "manifest.json").read_text()))


def sums(folder: Path) -> dict[str, dict[str, str]]:
    """The sha256 of the artifacts in a manifest, which must be those of the files."""
    found = {}
    for entry in written(folder)["artifacts"]:
        place = folder / "quantized" / entry["path"]
        assert {name: of_file(place / name) for name in entry["sha256"]} == entry["sha256"]
        found[f"{entry['candidate']}/{entry['format']}"] = entry["sha256"]
    return found


KILLS = (  # one after the other: as each of these steps begins, in the first place where it was not done before
    *("calibration", "algorithms", "export", "latency", "evaluation", "sensitivity", "search"),
    "export",  # of the winner of the search
)


def told(folder: Path) -> dict[str, Any]:
    """What a manifest says, without how long it took."""
    content = written(folder)
    for record in (*content["steps"], *content["trials"]):
        del record["seconds"]
        record.pop("peak_memory_bytes", None)
    return content


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that nobody interrupts, and with one that is killed again and again."""
    place = tmp_path_factory.mktemp("interrupted")

    def run(name: str, *killed: str) -> None:
        folder = place / name if not killed else place / f"{name}-{'-'.join(killed)}"  # Hydra's is new at every start
        ended = commands.run("interrupted.py", str(folder), str(place / f"{name}.store"), *killed, cwd=TESTS)
        assert ended.returncode == (-9 if killed else 0), ended.stderr

    run("whole")
    for step in KILLS:
        run("killed", step, "1")
    run("killed", "report", "4")
    run("killed")
    return place


def done(place: Path, name: str) -> Counter[str]:
    """How often each step was done."""
    return Counter((place / f"{name}.log").read_text().split())


@pytest.mark.parametrize("step", dict.fromkeys(KILLS))
def test_a_step_that_is_finished_is_never_done_again(step: str, interrupted: Path) -> None:
    assert done(interrupted, "killed")[step] == done(interrupted, "whole")[step] > 0


def test_a_run_that_was_killed_at_every_step_leaves_what_it_would_have_left(interrupted: Path) -> None:
    assert sums(interrupted / "killed") == sums(interrupted / "whole")
    assert told(interrupted / "killed") == told(interrupted / "whole")
    assert [step["outcome"] for step in written(interrupted / "killed")["steps"]] == ["kept"]
    assert not (interrupted / "killed.store").exists()  # nothing of it is needed any more


def test_exports_know_the_number_of_threads_that_latency_is_measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int | None] = []

    def refused(candidate: Any, path: Path, format_name: str, threads: int | None) -> Artifact:
        given.append(threads)
        raise UnsupportedError("target: nothing in it can be quantized.")

    monkeypatch.setattr(exporting, "export_one", refused)
    measured = Protocol(["validate"], latency=Latency(threads=3))
    finish(replace(plan(tmp_path), jobs=jobs()[1:], protocol=measured), Store(tmp_path / "store"))
    assert given == [3, 3]  # onnx and torch
    by_default = replace(plan(tmp_path), protocol=Protocol(["validate"]))
    assert by_default.threads == torch.get_num_threads()
    assert plan(tmp_path).threads is exported(tmp_path).threads is None


def test_what_is_faster_in_float_is_exported_again_and_so_does_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def profiled(*_: Any) -> list[list[Duration]]:
        asked.append("profile")
        each = {"conv2d": (2.0, 3.0), "linear": (2.0, 1.0)}
        return [[Duration(frozenset({name}), us[n]) for name, us in each.items()] for n in range(2)]

    def measure(_: Any, lanes: Mapping[str, Any], *__: Any) -> dict[str, Timing]:
        asked.append("placements")
        return {name: Timing(median, median) for name, median in zip(lanes, (2.0, 3.0, 1.0), strict=True)}

    def timed(subject: Subject, *_: Any) -> dict[str, Timing]:
        asked.append("artifacts")
        changed = any("measured" in op.reason for op in subject.entries[0].float_ops)
        return {name: Timing(ms, ms) for name, ms in (("onnxruntime", 2.0), ("static/onnx", 1.0 if changed else 3.0))}

    monkeypatch.setattr(placing, "profiled", profiled)
    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(compare, "_time", timed)
    monkeypatch.setattr(compare, "_reload_difference", lambda *_: None)  # there was no process
    found: list[dict[str, dict[str, str]]] = []

    def compared(subject: Subject, *rest: Any) -> Any:
        found.append(sums(subject.folder.parent))  # what a run that is killed from here on leaves
        return compare.compare(subject, *rest)

    monkeypatch.setattr(pipeline, "compare", compared)
    protocol = Protocol(["validate"], latency=Latency(threads=1))
    for folder, expected in (("one", ["artifacts", "profile", "placements", "artifacts"]), ("two", ["artifacts"])):
        asked.clear()
        run = replace(plan(tmp_path / folder), jobs=jobs()[:1], protocol=protocol, placement="auto")
        finish(replace(run, budget=Budget("val/loss", 9.0)), Store(tmp_path / "store"))
        assert asked == expected
        (entry,) = written(tmp_path / folder)["artifacts"]
        assert [op["op"] for op in entry["quantized_ops"]] == ["linear"]
        assert "1.000 ms with 1 operator in float, 3.000 without; FP32 takes 2.000 ms" in entry["placement"]
        assert (entry["latency_ms"]["median"], written(tmp_path / folder)["selected"]) == (1.0, "static/onnx")
    assert found == [sums(tmp_path / "one"), sums(tmp_path / "two")]
    assert found[0] == found[1]


def test_latencies_that_cannot_be_measured_are_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setattr(compare, "_time", failing)
    protocol = Protocol(["validate"], latency=Latency(threads=1))
    asked = replace(plan(tmp_path), jobs=jobs()[1:], protocol=protocol, placement="auto")
    assert finish(asked, Store(tmp_path / "store")).unjudged == "OSError: no space left"
    assert [record.getMessage() for record in caplog.records if record.name == "lq_plugin"] == [
        "the latency of dynamic/onnx, dynamic/torch cannot be measured. OSError: no space left"
    ]
    assert {entry["error"] for entry in written(tmp_path)["artifacts"]} == {"OSError: no space left"}


def exported(folder: Path, seed: int = 0) -> Plan:
    """One artifact, which is not evaluated."""
    return replace(plan(folder, seed), jobs=jobs(seed)[:1], protocol=None)


def test_what_belongs_to_other_weights_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "complete", lambda self: None)
    for folder, seed in (("one", 0), ("two", 1), ("again", 0)):
        finish(exported(tmp_path / folder, seed), Store(tmp_path / "store"))
    assert sums(tmp_path / "one") == sums(tmp_path / "again") != sums(tmp_path / "two")
    assert len(list((tmp_path / "store" / "artifacts").iterdir())) == 2


def test_a_calibration_of_other_data_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (static, _), store = jobs(), Store(tmp_path / "store")
    other = replace(static, source=source(data=images(16, seed=9)))
    for job, calibrated in ((static, True), (other, True), (static, False), (other, False)):
        job.candidate(store)
        assert ("calibrating" in capsys.readouterr().out) == calibrated


def test_two_runs_in_one_folder_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one that is later waits, and its artifacts and manifest replace those of the first."""
    inside, waited = threading.Event(), threading.Event()

    class Slow(StaticJob):
        def candidate(self, store: Store) -> Any:
            inside.set()
            assert waited.wait(60)
            return super().candidate(store)

    first = exported(tmp_path)
    slow = replace(first, jobs=(Slow(**vars(first.jobs[0])),))
    results: list[Any] = []
    published: list[Any] = []

    def publish(made: Manifest, folder: Path) -> None:
        with pytest.raises(Timeout):
            FileLock(folder.with_name(f".{folder.name}.lock")).acquire(timeout=0)
        assert manifest.read(folder / manifest.FILE) == made
        assert (folder / run_page.FILE).is_file()
        published.append(made)

    def run(one: Plan) -> None:
        results.append(finish(one, Store(tmp_path / "store"), publish))

    runs = [threading.Thread(target=run, args=[one]) for one in (slow, exported(tmp_path, seed=1))]
    runs[0].start()
    assert inside.wait(60)
    runs[1].start()
    told = ""
    while "waiting for another run" not in told and runs[1].is_alive():
        told += capsys.readouterr().out
        time.sleep(0.05)  # the other two work
    waited.set()
    for one in runs:
        one.join(120)
    assert f"waiting for another run that writes to {tmp_path / 'quantized'}" in " ".join(told.split())
    earlier, later = (result.candidates["static"].result.provenance.digest for result in results)
    assert written(tmp_path)["calibration"]["static"]["digest"] == later != earlier
    assert sums(tmp_path)
    assert published == [result.manifest for result in results]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class Failing(StaticJob):
    def candidate(self, store: Store) -> Any:
        raise ZeroDivisionError("why")


class Unsupported(StaticJob):
    def candidate(self, store: Store) -> Any:
        raise UnsupportedError("target: nothing in it can be quantized")


def test_a_candidate_that_fails_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    static, dynamic = jobs()
    asked = replace(plan(tmp_path), jobs=(Failing(**vars(static)), dynamic), protocol=None)
    finished = finish(asked, Store(tmp_path / "store"))
    assert {name: step.reason for name, step in finished.candidates.items()} == {
        "static": "ZeroDivisionError: why",
        "dynamic": None,
    }
    statuses = {entry["candidate"]: (entry["status"], entry["error"]) for entry in written(tmp_path)["artifacts"]}
    assert statuses["static"] == ("failed", "ZeroDivisionError: why")
    assert statuses["dynamic"][0] == "not_evaluated"
    assert [record.getMessage() for record in caplog.records if record.name == "lq_plugin"] == [
        "candidate 'static' could not be made. ZeroDivisionError: why"
    ]


@pytest.mark.parametrize(
    "protocol", [None, Protocol(["validate"], latency=None)], ids=["no table", "a table at the end"]
)
def test_what_the_table_says_of_a_target_is_not_logged_too(
    protocol: Protocol | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    static, dynamic = jobs()
    asked = replace(plan(tmp_path), jobs=(Unsupported(**vars(static)), dynamic), formats=["pt2"], protocol=protocol)
    finish(asked, Store(tmp_path / "store"))
    assert [entry["status"] for entry in written(tmp_path)["artifacts"]][:2] == ["unsupported", "unsupported"]
    assert ("nothing in it can be quantized" in caplog.text) == (protocol is None)


def test_artifacts_of_an_earlier_run_do_not_stand_for_what_failed_or_was_not_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (static, _) = jobs()
    asked = replace(plan(tmp_path), jobs=(static,), protocol=None)
    finish(asked, Store(tmp_path / "store"))
    place = tmp_path / "quantized" / "static" / "onnx"
    assert place.is_dir()
    finish(replace(asked, jobs=(replace(static, name="other"),)), Store(tmp_path / "store"))
    assert place.is_dir()  # nothing of an earlier training is removed unasked, but it is said
    assert "static/onnx of an earlier run are still in" in " ".join(capsys.readouterr().out.split())
    finish(replace(asked, jobs=(Failing(**vars(static)),)), Store(tmp_path / "store"))
    assert not place.exists()


def test_without_a_folder_only_candidates_are_made(tmp_path: Path) -> None:
    finished = finish(Plan(jobs()), Store(tmp_path / "store"))
    assert [step.error for step in finished.candidates.values()] == [None, None]
    assert finished.manifest is None
    assert list(tmp_path.iterdir()) == []


def test_a_step_is_skipped_where_one_that_it_needs_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> None:
        raise CalibrationError("why")

    made = attempt("one failed", lambda: 3)
    assert (made.result, made.error, made.reason) == (3, None, None)
    failed = attempt("two failed", failing, made)
    skipped = attempt("three failed", lambda: pytest.fail("it is skipped"), made, failed)
    assert failed.reason == skipped.reason == "CalibrationError: why"
    expected = attempt(
        "four failed", lambda: (_ for _ in ()).throw(UnsupportedError("no")), expected=(UnsupportedError,)
    )
    assert expected.reason == "UnsupportedError: no"
    assert [record.getMessage() for record in caplog.records] == ["two failed. CalibrationError: why"]
    with pytest.raises(KeyboardInterrupt):
        attempt("five failed", lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert Step[int]() == Step(None, None)
