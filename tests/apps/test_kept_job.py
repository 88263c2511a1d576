"""What a finished job of a sweep leaves is taken over as it was measured, or the job runs again and says why."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from damage.manifests import good

from lq_plugin import ArtifactExport, checksums
from lq_plugin.apps.kept_job import KeptJob
from lq_plugin.report import manifest
from lq_plugin.report.manifest import Entry, Manifest
from lq_plugin.store import STALE, Store

WEIGHTS = "of these weights"
MODEL = "static/onnx/model.onnx"


def job(run: Path, **options: Any) -> KeptJob:
    return KeptJob("0123", Store(run.parent / "fits" / "fit.store"), run / "quantized", **options)


def finished(run: Path, **changes: Any) -> KeptJob:
    """A run that has exported and measured one artifact, and recorded it."""
    file = run / "quantized" / MODEL
    file.parent.mkdir(parents=True)
    file.write_bytes(b"any model")
    entry = Entry("static", "static", "onnxruntime", "onnx", "static/onnx", {file.name: checksums.of_file(file)}, 9)
    entry = replace(entry, **{"status": "ok", "metrics": {"val/acc": 0.5}} | changes)
    exporter = ArtifactExport(["pt2"])
    exporter.folder = run / "quantized"
    exporter.manifest = replace(Manifest.from_json(good()), artifacts=(entry,))
    made = job(run)
    made.keep(WEIGHTS, SimpleNamespace(callbacks=[exporter]))
    return made


def record(made: KeptJob) -> Path:
    return made.store.folder / "jobs" / "0123.json"


def test_its_results_are_in_the_new_folder_whatever_happens_to_the_old_one(tmp_path: Path) -> None:
    finished(tmp_path / "first")
    taken = job(tmp_path / "second").taken_over(WEIGHTS)
    shutil.rmtree(tmp_path / "first")
    assert taken is not None
    assert taken == manifest.read(tmp_path / "second" / "quantized" / "manifest.json")
    assert (tmp_path / "second" / "quantized" / MODEL).read_bytes() == b"any model"
    assert job(tmp_path / "third").taken_over(WEIGHTS) == taken


def test_in_the_same_folder_the_manifest_is_written_again(tmp_path: Path) -> None:
    assert job(finished(tmp_path / "run").folder.parent).taken_over(WEIGHTS) is not None
    assert (tmp_path / "run" / "quantized" / "manifest.json").is_file()


def test_a_copy_that_was_interrupted_is_made_again(tmp_path: Path) -> None:
    finished(tmp_path / "first")
    (tmp_path / "second" / "quantized" / "static" / ".onnx-killed").mkdir(parents=True)
    assert job(tmp_path / "second").taken_over(WEIGHTS) is not None
    assert [path.name for path in (tmp_path / "second" / "quantized" / "static").iterdir()] == ["onnx"]


def test_other_weights_or_skip_finished_false_run_it_again(tmp_path: Path) -> None:
    finished(tmp_path / "first")
    assert job(tmp_path / "second").taken_over("of others") is None
    assert job(tmp_path / "second", skips=False).taken_over(WEIGHTS) is None
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [
        ({}, True),
        ({"status": "unsupported", "error": "no such form", "path": None, "sha256": {}}, True),
        ({"status": "not_evaluated"}, True),
        ({"status": "not_evaluated", "error": "no space left on device"}, False),
        ({"status": "failed", "error": "no space left on device"}, False),
    ],
)
def test_what_failed_is_not_recorded_as_finished(changes: dict[str, Any], is_kept: bool, tmp_path: Path) -> None:
    assert record(finished(tmp_path / "run", **changes)).exists() == is_kept


GONE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda run: shutil.rmtree(run), r"static/onnx there is missing"),
    "changed": (lambda run: (run / "quantized" / MODEL).write_bytes(b"NOT MODEL"), "has a different sha256"),
    "link": (lambda run: (run / "quantized").rename(run / "x") and (run / "quantized").symlink_to("x"), "is a link"),
}


@pytest.mark.parametrize("kind", GONE)
def test_artifacts_that_are_not_those_that_were_measured(kind: str, tmp_path: Path, capsys: Any) -> None:
    finished(tmp_path / "first")
    prepare, said = GONE[kind]
    prepare(tmp_path / "first")
    assert job(tmp_path / "second").taken_over(WEIGHTS) is None
    told = capsys.readouterr().out
    assert said in told
    assert f"this job finished earlier in {tmp_path / 'first' / 'quantized'}, but" in told
    assert not (tmp_path / "second" / "quantized").exists()


def resealed(file: Path, **changes: Any) -> None:
    content = {name: value for name, value in json.loads(file.read_text()).items() if name != "digest"} | changes
    file.write_text(json.dumps(content | {"digest": checksums.of_json(content)}))


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "figure": (lambda file: file.write_text(file.read_text().replace("0.5", "0.9")), "its digest differs"),
    "half": (lambda file: os.truncate(file, 100), "is not valid JSON"),
    "list": (lambda file: file.write_text("[]"), "does not say where the artifacts are"),
    "manifest": (lambda file: resealed(file, manifest={}), "schema_version"),
    "pipe": (lambda file: (file.unlink(), os.mkfifo(file)), "is not a regular file"),
    "link": (lambda file: (file.rename(file.with_name("x")), file.symlink_to("x")), "is a link"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_put_aside(kind: str, tmp_path: Path, capsys: Any) -> None:
    file = record(finished(tmp_path / "first"))
    prepare, said = DAMAGED[kind]
    prepare(file)
    assert job(tmp_path / "second").taken_over(WEIGHTS) is None
    told = capsys.readouterr().out
    assert said in told
    assert "It was renamed to 0123.json.damaged" in told
    assert not os.path.lexists(file)


def test_records_of_results_that_are_gone_are_removed_after_a_week(tmp_path: Path) -> None:
    file = record(finished(tmp_path / "first"))
    text = file.read_text()
    for name, folder in (("kept", str(tmp_path)), ("gone", "/nowhere"), ("new", "/nowhere")):
        (file.parent / f"{name}.json").write_text(text)
        resealed(file.parent / f"{name}.json", folder=folder)
    (file.parent / "0123.json.damaged").write_text("[]")
    old = time.time() - STALE - 60
    for name in ("kept.json", "gone.json", "0123.json.damaged"):
        os.utime(file.parent / name, (old, old))
    assert job(tmp_path / "second").taken_over(WEIGHTS) is not None
    assert sorted(path.name for path in file.parent.iterdir()) == ["0123.json", "kept.json", "new.json"]
