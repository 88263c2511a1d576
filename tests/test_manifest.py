"""The manifest as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lq_plugin.report import manifest
from lq_plugin.report.environment import environment
from lq_plugin.report.manifest import SCHEMA_VERSION, Config, Entry, Fp32, Manifest

FAILED = Entry("static", "static", "onnxruntime", "onnx", status="failed", error="why")


def built(**changes: Any) -> Manifest:
    return Manifest(artifacts=(FAILED,), environment=environment(), **changes)


def test_a_failed_artifact_has_every_key_and_its_reason() -> None:
    (entry,) = built().to_json()["artifacts"]
    assert (entry["status"], entry["error"], entry["path"], entry["sha256"]) == ("failed", "why", None, {})
    assert [entry[key] for key in ("size_bytes", "latency_ms", "speedup", "sqnr_db")] == [None] * 4


def test_the_file_is_json_whatever_was_measured(tmp_path: Path) -> None:
    fp32 = Fp32({"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 0.5})
    file = manifest.write(tmp_path / "new" / "folder", built(fp32=fp32, config=Config(run={"seeds": (1, 2)})))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads(file.read_text(), parse_constant=refuse)
    assert content["fp32"]["metrics"] == {"a": None, "b": "inf", "c": "-inf", "d": 0.5}
    assert content["config"]["run"]["seeds"] == [1, 2]
    assert content["schema_version"] == SCHEMA_VERSION == 1


def test_a_manifest_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    file = manifest.write(tmp_path, built())
    before = file.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        manifest.write(tmp_path, built(config=Config(run={"object": object()})))
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]
    assert file.read_bytes() == before


def test_the_environment_names_what_was_used() -> None:
    found = built().to_json()["environment"]
    assert found["versions"].keys() >= {"python", "torch", "torchao", "lightning"}
    assert isinstance(found["cpu"], str)
    assert isinstance(found["isa"], list)
    json.dumps(found)


def test_what_a_killed_run_left_is_removed_when_a_manifest_is_written(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.12345").write_text("half")
    manifest.write(tmp_path, built())
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]
