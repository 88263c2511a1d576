"""The manifest as a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lq_plugin.report import manifest
from lq_plugin.report.environment import environment
from lq_plugin.report.limits import ContentError
from lq_plugin.report.manifest import SCHEMA_VERSION, Config, Entry, Fp32, Kernels, Manifest

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


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({"static": ["a" * 1001]}, r"notes\['static'\]\[0\] is .*, not text of up to 1000 characters"),
        ({"static": "a"}, r"notes\['static'\] is 'a', not a list"),
        ({"static": [1]}, r"notes\['static'\]\[0\] is 1, not text"),
        ({"static": ["a"] * 501}, r"notes\['static'\] has 501 entries; at most 500 are read"),
    ],
)
def test_notes_are_few_short_sentences(notes: Any, said: str) -> None:
    content = built(notes={"static": ("a",)}).to_json()
    assert Manifest.from_json(content).notes == {"static": ("a",)}
    with pytest.raises(ContentError, match=said):
        Manifest.from_json({**content, "notes": notes})


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


KERNELS = Kernels({"QLinearConv": ("a", "b")}, {"MatMul": ("c",)}, {"linear": 1})


def with_kernels(tmp_path: Path, kernels: Kernels | None) -> dict[str, Any]:
    content = replace(built(), artifacts=(replace(FAILED, kernels=kernels),))
    return dict(json.loads(manifest.write(tmp_path, content).read_text()))


@pytest.mark.parametrize("kernels", [KERNELS, None])
def test_kernels_are_read_as_they_were_written(kernels: Kernels | None, tmp_path: Path) -> None:
    (entry,) = Manifest.from_json(with_kernels(tmp_path, kernels)).artifacts
    assert entry.kernels == kernels


def test_a_manifest_of_an_earlier_version_has_no_kernels(tmp_path: Path) -> None:
    content = with_kernels(tmp_path, KERNELS)
    del content["artifacts"][0]["kernels"]
    (entry,) = Manifest.from_json(content).artifacts
    assert entry.kernels is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"float": None}, r"kernels\.float is null, not an object"),
        ({"int8": {"QLinearConv": 2}}, r"kernels\.int8\['QLinearConv'\] is 2, not a list"),
        ({"fell_back": {"linear": 0}}, r"kernels\.fell_back\['linear'\] is 0, not a number of things"),
    ],
)
def test_other_kernels_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    content = with_kernels(tmp_path, KERNELS)
    content["artifacts"][0]["kernels"] |= changes
    with pytest.raises(ContentError, match=said):
        Manifest.from_json(content)
