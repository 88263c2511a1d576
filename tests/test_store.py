"""What is kept of a run is used undamaged or not at all, and removed when it is needed no more."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny, images

from lq_plugin import Scheme, exporting, quantize
from lq_plugin.artifacts.description import Artifact
from lq_plugin.artifacts.writing import export_one
from lq_plugin.candidate import StaticCandidate
from lq_plugin.coverage import Measured
from lq_plugin.store import RESULTS, Store

ADVICE = "do as if nothing were kept"
DECISION = Measured(int8=True, reason="faster here")
NAME, OTHER = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def candidate() -> StaticCandidate:
    batch = torch.stack([image for image, _ in images(8)])
    made = quantize(Tiny(), [batch], Scheme(observer="minmax"))
    assert isinstance(made, StaticCandidate)
    provenance = replace(made.calibration.provenance, observed="observed")
    return replace(made, calibration=replace(made.calibration, provenance=provenance))


@pytest.fixture(scope="module")
def artifact(candidate: StaticCandidate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_one(candidate, tmp_path_factory.mktemp("made") / "static" / "onnx", "onnx").path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", keeps_calibrations=True, advice=ADVICE)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    return lambda: capsys.readouterr().out


def kept(store: Store, candidate: StaticCandidate) -> Path:
    """The file of the candidate's calibration."""
    store.keep_calibration(candidate.calibration)
    (file,) = (store.folder / "calibrations").glob("*.pt")
    return file


def flip(file: Path, position: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * position)] ^= 1
    file.write_bytes(content)


def long_ago(path: Path) -> None:
    os.utime(path, (time.time() - 30 * 24 * 3600,) * 2)


def test_a_calibration_is_found_by_the_graph_that_it_belongs_to(
    store: Store, candidate: StaticCandidate, said: Callable[[], str]
) -> None:
    kept(store, candidate)
    (found,) = store.calibrations(candidate.graph.digest)
    assert found.provenance == candidate.calibration.provenance
    for name, statistic in candidate.calibration.statistics.items():
        assert all(torch.equal(found.statistics[name][part], tensor) for part, tensor in statistic.items())
    assert store.calibrations(OTHER) == []
    assert said() == ""


def test_a_calibration_is_kept_once(store: Store, candidate: StaticCandidate) -> None:
    before = kept(store, candidate).stat().st_mtime_ns
    assert kept(store, candidate).stat().st_mtime_ns == before


class Planted:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def named(file: Path, content: Any) -> None:
    """Another calibration that is named as it should be."""
    stream = io.BytesIO()
    torch.save(content, stream)
    digest = hashlib.sha256(stream.getvalue()).hexdigest()[:16]
    file.with_name(f"{file.stem.rpartition('-')[0]}-{digest}.pt").write_bytes(stream.getvalue())
    file.unlink()


CALIBRATIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped bit": (flip, r"it is damaged|it was changed"),
    "flipped bit in its directory": (lambda file: flip(file, 0.97), r"it (is|was|has) "),
    "truncated": (lambda file: os.truncate(file, 500), r"it is cut off or damaged"),
    "empty": (lambda file: os.truncate(file, 0), r"it is empty"),
    "another one": (lambda file: torch.save({"statistics": {}}, file), r"it was changed after it was stored"),
    "no calibration": (
        lambda file: named(file, {"statistics": 3, "provenance": {}}),
        r"calibration: its saved state is damaged",
    ),
    "pipe": (lambda file: (file.unlink(), os.mkfifo(file)), r"it is not a regular file"),
    "link": (
        lambda file: (file.rename(file.with_name("elsewhere")), file.symlink_to("elsewhere")),
        r"it is a link, or lies outside",
    ),
    "planted": (lambda file: named(file, {"statistics": Planted(), "provenance": {}}), r"calibration: its saved state"),
}


@pytest.mark.parametrize("damage", CALIBRATIONS)
def test_a_damaged_calibration_is_put_aside(
    damage: str,
    store: Store,
    candidate: StaticCandidate,
    said: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare, message = CALIBRATIONS[damage]
    prepare(kept(store, candidate))
    (file,) = store.folder.glob("calibrations/*.pt")
    assert store.calibrations(candidate.graph.digest) == []
    told = said()
    assert re.search(message, told), told
    assert f"the calibration kept in {file}: " in told
    assert f"It was renamed to {file.name}.damaged" in told
    assert ADVICE in told
    assert store.calibrations(candidate.graph.digest) == []
    assert said() == ""
    assert not (tmp_path / "ran").exists()
    kept(store, candidate)
    assert len(store.calibrations(candidate.graph.digest)) == 1


@pytest.mark.parametrize("linked", ["calibrations", "artifacts", "decisions", ""])
def test_nothing_is_read_renamed_or_removed_behind_a_link(
    linked: str, store: Store, candidate: StaticCandidate, tmp_path: Path, said: Callable[[], str]
) -> None:
    mine = tmp_path / "mine"
    (mine / NAME).mkdir(parents=True)
    for name in (f"x-{candidate.graph.digest[:16]}-x.pt", ".hidden.pt.1", f"{NAME}.json"):
        (mine / name).touch()
    for path in mine.iterdir():
        long_ago(path)
    before = sorted(path.name for path in mine.iterdir())
    (store.folder / linked).parent.mkdir(exist_ok=True)
    (store.folder / linked).symlink_to(mine)
    assert store.calibrations(candidate.graph.digest) == []
    assert not store.take_artifact(NAME, tmp_path / "taken")
    assert store.decisions() == {}
    store.complete()
    assert f"{linked or 'store'}: it is a link. It was renamed to {linked or 'store'}.damaged" in said()
    assert sorted(path.name for path in mine.iterdir()) == before


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_an_artifact_is_taken_as_it_was_kept(store: Store, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "old").touch()
    assert not store.take_artifact(NAME, tmp_path / "taken")
    store.keep_artifact(NAME, artifact)
    assert store.take_artifact(NAME, tmp_path / "taken")
    assert content(tmp_path / "taken") == content(artifact)
    assert not store.take_artifact(OTHER, tmp_path / "other")


ARTIFACTS: dict[str, Callable[[Path], Any]] = {
    "flipped bit": lambda folder: flip(folder / "model.onnx"),
    "flipped bit of the description": lambda folder: flip(folder / "artifact.json"),
    "missing file": lambda folder: (folder / "model.onnx").unlink(),
    "missing description": lambda folder: (folder / "artifact.json").unlink(),
    "pipe": lambda folder: os.mkfifo(folder / "pipe"),
    "folder": lambda folder: (folder / "folder").mkdir(),
    "link": lambda folder: (folder / "link").symlink_to("/etc/passwd"),
    "empty": lambda folder: [file.unlink() for file in folder.iterdir()],
    "text": lambda folder: (shutil.rmtree(folder), folder.write_text("what nobody expects")),
    "link to a folder": lambda folder: (folder.rename(folder.with_name("else")), folder.symlink_to("else")),
}


@pytest.mark.parametrize("damage", ARTIFACTS)
def test_in_place_of_a_damaged_artifact_another_is_made(
    damage: str,
    store: Store,
    candidate: StaticCandidate,
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Path] = []

    def export(candidate: StaticCandidate, path: Path, format_name: str, threads: int | None) -> Artifact:
        made.append(path)
        shutil.copytree(artifact, path, dirs_exist_ok=True)
        return exporting.read(path)

    monkeypatch.setattr(exporting, "export_one", export)
    place = tmp_path / "quantized" / "static" / "onnx"

    def exported() -> int:
        """How often it was made by now; it is whole."""
        exporting.artifact_of(candidate, place, "onnx", store)
        assert content(place) == content(artifact)
        return len(made)

    assert (exported(), exported()) == (1, 1)
    (folder,) = (store.folder / "artifacts").iterdir()
    ARTIFACTS[damage](folder)
    assert (exported(), exported()) == (2, 2)


def test_a_decision_is_on_disk_before_it_is_acted_on(store: Store) -> None:
    placed = Measured(True, "measured", ("conv2d", "add"), {"conv2d": -1.5})
    store.decisions()[NAME], store.decisions()[OTHER] = DECISION, placed
    assert store.decisions() == {NAME: DECISION, OTHER: placed}
    store.complete()
    assert store.decisions() == {NAME: DECISION, OTHER: placed}  # what was measured once is never measured again


DECISIONS: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: os.truncate(file, 0),
    "cut": lambda file: os.truncate(file, 10),
    "deep": lambda file: file.write_text("[" * 10**5),
    "list": lambda file: file.write_text("[]"),
    "another type": lambda file: file.write_text(json.dumps({"int8": 1, "reason": "x"})),
    "another field": lambda file: file.write_text(json.dumps({"int8": True, "reason": "x", "y": 1})),
    "no names": lambda file: file.write_text(json.dumps({"int8": True, "reason": "x", "float_ops": [1]})),
    "no numbers": lambda file: file.write_text(json.dumps({"int8": True, "reason": "x", "saved": {"a": "1"}})),
    "another name": lambda file: file.rename(file.with_name("fastest.json")),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "device": lambda file: (file.unlink(), file.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("damage", DECISIONS)
def test_a_damaged_decision_is_measured_once_more(damage: str, store: Store) -> None:
    store.decisions()[NAME] = DECISION
    store.decisions()[OTHER] = DECISION
    DECISIONS[damage](store.folder / "decisions" / f"{NAME}.json")
    assert store.decisions() == {OTHER: DECISION}
    store.decisions()[NAME] = DECISION
    assert damage == "folder" or store.decisions() == {NAME: DECISION, OTHER: DECISION}


RESULT: dict[str, Callable[[Path], Any]] = {
    "flipped bit": flip,
    "cut": lambda file: os.truncate(file, 100),
    "another one": lambda file: torch.save({"found": 2.0}, file),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "link": lambda file: (file.rename(file.with_name("elsewhere")), file.symlink_to("elsewhere")),
    "planted": lambda file: torch.save(Planted(), file),
}


@pytest.mark.parametrize("damage", RESULT)
def test_in_place_of_a_damaged_result_another_is_made(
    damage: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = store.results("scores")
    results[NAME] = results[OTHER] = {"found": torch.ones(3), "of": [1, None, "x", True]}
    (file,) = (store.folder / "scores").glob(f"{NAME}-*.pt")
    RESULT[damage](file)
    assert (results.get(NAME), results.get(OTHER)["of"]) == (None, [1, None, "x", True])
    assert not (tmp_path / "ran").exists()
    results[NAME] = {"found": 3.0}
    assert results.get(NAME) == {"found": 3.0}


@pytest.mark.parametrize("keeps", [True, False])
def test_what_a_complete_run_needs_no_more_is_removed(
    keeps: bool, candidate: StaticCandidate, artifact: Path, tmp_path: Path
) -> None:
    interrupted = Store(tmp_path / "store", keeps)
    kept(interrupted, candidate)
    for name in (NAME, OTHER):
        interrupted.keep_artifact(name, artifact)
    for kind in RESULTS:
        interrupted.results(kind)[NAME] = {"found": 1.0}
    again = Store(tmp_path / "store", keeps)
    assert all(again.results(kind).get(NAME) == {"found": 1.0} for kind in RESULTS)
    assert len(again.calibrations(candidate.graph.digest)) == 1
    assert again.take_artifact(NAME, tmp_path / "taken")
    again.complete()
    assert len(list(again.folder.glob("calibrations/*.pt"))) == keeps
    assert not [kind for kind in RESULTS if (again.folder / kind).exists()]
    assert [path.name for path in again.folder.glob("artifacts/*")] == [OTHER]  # of another run
    interrupted.complete()
    assert again.folder.exists() == keeps


def test_what_nobody_comes_back_for_is_removed(store: Store, candidate: StaticCandidate, artifact: Path) -> None:
    calibration = kept(store, candidate)
    for name in (NAME, OTHER):
        store.keep_artifact(name, artifact)
    half = [calibration.with_name(".x.pt.1"), store.folder / "artifacts" / f".{NAME}-x"]
    for file in half:
        file.touch()
    other = Store(store.folder, keeps_calibrations=True)
    other.complete()
    assert all(file.exists() for file in (calibration, *half))
    for path in (store.folder / "artifacts" / NAME, calibration, *half):
        long_ago(path)
    other.complete()
    assert not any(file.exists() for file in half)
    assert calibration.exists()
    assert [path.name for path in store.folder.glob("artifacts/*")] == [OTHER]


def test_another_run_may_remove_what_is_just_being_taken(
    store: Store, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.keep_artifact(NAME, artifact)
    copy = shutil.copyfile

    def late(source: Path, target: Path) -> Any:
        shutil.rmtree(store.folder, ignore_errors=True)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", late)
    assert not store.take_artifact(NAME, tmp_path / "taken")
    assert not list(tmp_path.glob("**/*taken*"))


def test_a_step_that_cannot_be_kept_is_no_failure(
    candidate: StaticCandidate, artifact: Path, tmp_path: Path, said: Callable[[], str]
) -> None:
    (tmp_path / "store").write_text("in the way")
    store = Store(tmp_path / "store")
    store.keep_calibration(candidate.calibration)
    store.keep_artifact(NAME, artifact)
    store.decisions()[NAME] = DECISION
    told = said()
    for what in ("the calibration of observed-", "the artifact static/onnx", "a measured decision"):
        assert re.search(rf"{what}.* could not be stored for a later run \(.*Not a directory", told), told
    store.complete()
    assert (tmp_path / "store").read_text() == "in the way"
