"""Ctrl+C at any time: what was made and what was not is said, no manifest is left that is not true, and no scratch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from tiny import CLASSES, Images, Tiny, fit
from torchmetrics.classification import MulticlassAccuracy

import lq_plugin
from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, StaticQuantization, checksums, exporting
from lq_plugin.artifacts import writing
from lq_plugin.interruption import account, accounted
from lq_plugin.report import manifest
from lq_plugin.report.environment import environment
from lq_plugin.report.manifest import Entry, Fp32, Manifest


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Lightning ignores Ctrl+C once it has seen one, and so does what a shell starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class InTraining(Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        interrupt()


class InEvaluation(MulticlassAccuracy):
    def update(self, *given: Any) -> None:
        interrupt()


def interrupted(
    folder: Path, capsys: pytest.CaptureFixture[str], *callbacks: Any, metrics: dict[str, Any] | None = None
) -> str:
    """What a fit says that Ctrl+C ends."""
    ours = [StaticQuantization(), DynamicQuantization(), ArtifactExport(["pt2"])]
    evaluation = Int8Evaluation(latency=None, metrics=metrics)
    with pytest.raises(SystemExit) as ended:
        fit(folder, Tiny(), *ours, evaluation, *callbacks, data=Images(), enable_checkpointing=False)
    assert ended.value.code == 1  # as Lightning ends every run that Ctrl+C ends
    assert not [path for path in folder.rglob(".*") if not path.name.startswith(".lq_plugin")]
    return " ".join(capsys.readouterr().out.split())


def test_in_training_nothing_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = interrupted(tmp_path, capsys, InTraining())
    assert said.count("interrupted before anything was made: there is no candidate and no artifact") == 1
    assert not (tmp_path / "quantized").exists()


def test_in_the_export_the_artifacts_that_were_made_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_one(candidate: Any, path: Path, format_name: str, *threads: int | None) -> Any:
        if format_name == "torch":
            path.mkdir(parents=True)
            interrupt()
        return writing.export_one(candidate, path, format_name, *threads)

    monkeypatch.setattr(exporting, "export_one", export_one)
    said = interrupted(tmp_path, capsys)
    assert "made: static/pt2 (not evaluated), dynamic/pt2 (unsupported); not made: dynamic/torch; artifacts are" in said
    assert "are not all made, so there is no" in said
    assert not (tmp_path / "quantized" / manifest.FILE).exists()
    assert lq_plugin.load(tmp_path / "quantized" / "static" / "pt2")


def test_in_the_evaluation_the_manifest_of_the_export_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = interrupted(tmp_path, capsys, metrics={"given": InEvaluation(CLASSES)})
    assert (
        "made: static/pt2 (not evaluated), dynamic/pt2 (unsupported), dynamic/torch (not evaluated); artifacts" in said
    )
    assert "artifacts are listed in" in said
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # by the Trainer that fits alone
    (static, *_) = manifest.read(tmp_path / "quantized" / manifest.FILE).artifacts
    assert lq_plugin.load(tmp_path / "quantized" / str(static.path))


def changed(folder: Path) -> None:
    (folder / "static" / "pt2" / "model.pt2").write_text("of the next placement")


@pytest.mark.parametrize(("change", "true"), [(lambda folder: None, True), (changed, False)])
def test_a_manifest_of_artifacts_that_were_just_replaced_is_removed(
    change: Callable[[Path], None], true: bool, tmp_path: Path
) -> None:
    place = tmp_path / "static" / "pt2"
    place.mkdir(parents=True)
    (place / "model.pt2").write_text("as it was")
    known = Entry("static", "static", "torch", "pt2", path="static/pt2")
    known = replace(known, sha256={"model.pt2": checksums.of_file(place / "model.pt2")})
    manifest.write(tmp_path, Manifest(fp32=Fp32(), artifacts=(known,), environment=environment()))

    def run() -> None:
        with accounted(tmp_path, ["static/pt2"], {known.label: known}):
            change(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as ended:
        run()
    assert (tmp_path / manifest.FILE).exists() == true
    assert ("artifacts are listed in" in account(ended.value)) == true
