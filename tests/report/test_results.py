"""What runs have left is found from a Trainer or a folder, and what cannot be read is said."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from damage.manifests import good

from lq_plugin import ArtifactExport, Results, StaticQuantization, find_results
from lq_plugin.errors import ConfigError


def put(run: Path, age: int = 0, **changes: Any) -> Path:
    """Write a manifest as a run of so many seconds ago does, and return its folder."""
    content = {**copy.deepcopy(good()), **changes}
    for entry in content["artifacts"]:
        entry["path"] = f"{entry['candidate']}/{entry['format']}" if entry["status"] == "ok" else None
    folder = run / "quantized"
    folder.mkdir(parents=True)
    file = folder / "manifest.json"
    file.write_text(json.dumps(content))
    os.utime(file, (1_000_000 - age,) * 2)
    return folder


def trainer(root: Path, *callbacks: Any, logged: Path | None = None) -> Any:
    loggers = [SimpleNamespace(log_dir=str(logged), save_dir=str(root))] if logged else []
    return SimpleNamespace(callbacks=list(callbacks), default_root_dir=str(root), loggers=loggers)


def folders(results: list[Results]) -> list[Path]:
    return [result.folder for result in results]


@pytest.mark.parametrize("below", [".", "quantized", ".."])
def test_a_run_is_found_from_its_folder_and_those_around(below: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "run")
    (found,) = find_results(str(tmp_path / "run" / below))
    assert found.folder == folder
    content = json.loads((folder / "manifest.json").read_text())
    assert found.manifest.to_json() == content
    ok = [entry for entry in content["artifacts"] if entry["status"] == "ok"]
    assert ok
    assert found.artifacts == {f"{e['candidate']}/{e['format']}": folder / e["path"] for e in ok}


def test_what_was_selected_is_a_folder_or_none(tmp_path: Path) -> None:
    label = next(f"{e['candidate']}/{e['format']}" for e in good()["artifacts"] if e["status"] == "ok")
    (found,) = find_results(put(tmp_path / "one", selected=label))
    assert found.selected == tmp_path / "one" / "quantized" / label
    (found,) = find_results(put(tmp_path / "other", selected=None))
    assert found.selected is None


def test_several_runs_come_newest_first(tmp_path: Path) -> None:
    older, newest, oldest = (put(tmp_path / name, age) for name, age in (("a", 5), ("b/c", 0), ("d", 9)))
    assert folders(find_results(tmp_path)) == [newest, older, oldest]


def test_a_trainer_whose_export_saw_a_fit_has_the_results_of_that_one(tmp_path: Path) -> None:
    mine, exporter = put(tmp_path / "mine", 9), ArtifactExport()
    put(tmp_path / "newer")
    exporter.folder = mine
    assert folders(find_results(trainer(tmp_path, StaticQuantization(), exporter))) == [mine]
    exporter.folder = tmp_path / "not yet" / "quantized"
    with pytest.raises(ConfigError, match=r"no run has left a quantized/manifest.json in .*not yet/quantized\."):
        find_results(trainer(tmp_path, exporter))


def test_a_trainer_whose_copies_did_the_work_has_what_is_in_its_folders(tmp_path: Path) -> None:
    elsewhere, logged, root = put(tmp_path / "out"), put(tmp_path / "logs"), put(tmp_path / "root")
    exporter = ArtifactExport(output_dir=str(tmp_path / "out"))
    assert folders(find_results(trainer(tmp_path / "root", exporter, logged=tmp_path / "logs"))) == [elsewhere]
    assert folders(find_results(trainer(tmp_path / "root", logged=tmp_path / "logs"))) == [logged]
    assert folders(find_results(trainer(tmp_path / "root", ArtifactExport(), logged=tmp_path / "none"))) == [root]


def test_nothing_names_every_place_that_was_searched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"in .*/logs, .*/root\. ArtifactExport writes it when fit ends"):
        find_results(trainer(tmp_path / "root", logged=tmp_path / "logs"))
    with pytest.raises(ConfigError, match=r"in .*/nowhere\. "):
        find_results(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="trainer_or_folder: int is neither a Trainer nor the path"):
        find_results(3)


@pytest.mark.parametrize("path", ["../../elsewhere", "/etc", 3, "a\0b"])
def test_an_artifact_out_of_its_folder_is_refused(path: Any, tmp_path: Path) -> None:
    file = put(tmp_path / "run") / "manifest.json"
    content = json.loads(file.read_text())
    content["artifacts"][0]["path"] = path
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"manifest\.json cannot be read"):
        find_results(tmp_path)


def test_a_manifest_that_cannot_be_read_costs_the_others_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine, broken = put(tmp_path / "fine"), put(tmp_path / "broken")
    (broken / "manifest.json").write_text("{")
    assert folders(find_results(tmp_path)) == [fine]
    said = capsys.readouterr()
    assert "it is left out" in " ".join((said.out + said.err).split())
    with pytest.raises(ConfigError, match=r"broken/quantized/manifest\.json cannot be read"):
        find_results(broken)
