"""When training is over nothing is raised: what fails is recorded and said, and everything else is delivered."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from tiny import CLASSES, Images, Tiny, fit, images, trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

import lq_plugin
from lq_plugin import (
    ArtifactExport,
    Budget,
    DynamicQuantization,
    Int8Evaluation,
    Latency,
    StaticQuantization,
    exporting,
)
from lq_plugin.callbacks.finishing import RunContext

QUICK = Latency(rounds=1, seconds=0.01)


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "quantized" / "manifest.json").read_text()))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error of ours."""
    return [record.getMessage() for record in caplog.records if record.name == "lq_plugin"]


class Paired(Images):
    """Validates on two loaders at once, of which the first has three batches and the second two."""

    mode = "max_size"

    def val_dataloader(self) -> Any:
        loaders = {"first": DataLoader(images(24, 2), 8), "second": DataLoader(images(16, 3), 8)}
        return CombinedLoader(loaders, self.mode)


class Shortest(Paired):
    mode = "min_size"


def loss_of_pairs(forward: Any, batch: Any) -> Any:
    """Mean loss of the loaders that are not at their end."""
    pairs = [pair for pair in batch.values() if pair is not None]
    return torch.stack([F.cross_entropy(forward(x), y) for x, y in pairs]).mean()


class Pairs(Tiny):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert batch.keys() == {"first", "second"}
        self.log("val/loss", loss_of_pairs(self, batch), batch_size=1)


@pytest.mark.parametrize(("data", "batches", "samples"), [(Paired, 3, 8), (Shortest, 2, 16)])
def test_a_combined_loader_keeps_its_mode(data: type[Paired], batches: int, samples: int, tmp_path: Path) -> None:
    # Of five batches, which both loaders have together, this seed draws the fifth, and there are but two or three.
    static = StaticQuantization(samples=8, seed=0)
    assert torch.randperm(5, generator=torch.Generator().manual_seed(0))[0] == 4
    evaluation = Int8Evaluation(["validate"], latency=None)
    kept = ModelCheckpoint(tmp_path, "kept")
    fit(tmp_path, Pairs(), static, ArtifactExport(["pt2"]), evaluation, kept, data=data())
    (entry,) = manifest(tmp_path)["artifacts"]
    assert (entry["status"] in ("ok", "over_budget"), entry["error"]) == (True, None)
    weights = Pairs().eval()
    weights.load_state_dict(torch.load(tmp_path / "kept.ckpt", weights_only=True)["state_dict"])
    int8 = lq_plugin.load(tmp_path / "quantized" / entry["path"])
    with torch.no_grad():
        passes = [batch for batch, *_ in data().val_dataloader()]
        assert len(passes) == batches
        for forward, reported in ((weights, manifest(tmp_path)["fp32"]["metrics"]), (int8, entry["metrics"])):
            truth = torch.stack([loss_of_pairs(forward, batch) for batch in passes]).mean().item()
            assert reported["val/loss"] == pytest.approx(truth, rel=1e-5)
    calibration = manifest(tmp_path)["calibration"]["static"]
    # Of one batch; the last one of the longest loader comes alone.
    assert (calibration["samples"], calibration["extra_pass"]) == (samples, False)


LARGEST = 1 << 16  # bytes of a file on the full disk: more than pytest keeps of a test's output


@pytest.fixture
def fill() -> Iterator[Callable[[], None]]:
    """Fill the disk until the test ends: from when this is called, files cannot grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Wide(Tiny):
    """Whatever is made of it is larger than what the full disk takes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2 * LARGEST // 64), nn.Linear(2 * LARGEST // 64, CLASSES))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are those of POSIX")
def test_a_disk_that_is_full_after_training_costs_nothing_of_it(
    fill: Callable[[], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Filling(Callback):
        def on_train_end(self, *_: Any) -> None:
            fill()

    evaluation = Int8Evaluation(latency=None)
    callbacks = [StaticQuantization(), DynamicQuantization(), ArtifactExport(["pt2"]), evaluation, Filling()]
    callbacks.append(RunContext({"long": "x" * LARGEST}))
    fit(tmp_path, Wide(), *callbacks, ModelCheckpoint(tmp_path, "kept"))
    assert torch.load(tmp_path / "kept.ckpt", weights_only=True)["global_step"] == 3
    assert evaluation.manifest is not None
    failed = [entry for entry in evaluation.manifest.artifacts if entry.status == "failed"]
    assert [entry.label for entry in failed] == ["static/pt2", "dynamic/torch"]
    assert [text for text in said(caplog) if "manifest.json' cannot be written" in text and "File too large" in text]
    assert [path for path in (tmp_path / "quantized").rglob("*") if path.is_file()] == []


def test_a_disk_that_is_full_after_the_export_leaves_its_manifest_and_the_figures_at_hand(
    fill: Callable[[], None], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    class Filling(MulticlassAccuracy):
        """The disk is full as soon as something is evaluated."""

        def update(self, *given: Any) -> None:
            fill()
            super().update(*given)

    export, evaluation = ArtifactExport(["pt2"]), Int8Evaluation(latency=None, metrics={"given": Filling(CLASSES)})
    callbacks = [StaticQuantization(), export, evaluation, RunContext({"long": "x" * LARGEST})]
    fit(tmp_path, Tiny(), *callbacks, enable_checkpointing=False)
    (written,) = manifest(tmp_path)["artifacts"]
    assert (written["status"], written["metrics"]) == ("not_evaluated", {})
    assert lq_plugin.load(tmp_path / "quantized" / written["path"])
    assert export.manifest is evaluation.manifest is not None
    assert export.manifest.artifacts[0].metrics.keys() >= {"val/loss", "val/acc", "test/loss", "test/acc"}
    assert len([text for text in said(caplog) if "cannot be written" in text]) == 1
    assert "val/loss" in capsys.readouterr().out


class Broken(ArtifactExport):
    """Fails in a way that nobody thought of."""

    raised: type[BaseException] = ZeroDivisionError

    def ask(self, *_: Any) -> Any:
        raise self.raised("in ask")


class Stopped(Broken):
    raised = SystemExit


def test_an_error_that_nobody_thought_of_is_said_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dynamic, evaluation = DynamicQuantization(), Int8Evaluation(latency=None)
    made = fit(tmp_path, Tiny(), dynamic, evaluation, Broken(["pt2"]))
    assert made.state.finished
    (text,) = said(caplog)
    assert "did not finish; training itself did" in text
    assert "ZeroDivisionError: in ask" in text
    assert dynamic.error == evaluation.error == "ZeroDivisionError: in ask"


def test_the_user_can_stop_what_comes_after_training(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="in ask"):
        fit(tmp_path, Tiny(), DynamicQuantization(), Stopped(["pt2"]), enable_checkpointing=False)


class WithoutValidation(Images):
    val_dataloader = L.LightningDataModule.val_dataloader


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize("budget", [Budget(), Budget("test/loss", 10.0)])
def test_the_test_split_judges_nothing_where_there_is_no_validation(
    budget: Budget, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = Int8Evaluation(budget=budget, latency=QUICK)
    callbacks = [DynamicQuantization(), ArtifactExport(["pt2"]), evaluation]
    fit(tmp_path, Tiny(), *callbacks, data=WithoutValidation(), enable_checkpointing=False)
    entry = manifest(tmp_path)["artifacts"][1]
    assert entry["metrics"].keys() == {"test/loss", "test/acc"}
    assert entry["latency_ms"]["median"] > 0
    assert (entry["status"], manifest(tmp_path)["selected"]) == ("not_evaluated", None)
    assert "the test split is never used to judge" in entry["error"]
    assert "the test split is never used to judge" in " ".join(capsys.readouterr().out.split())


class SameName(Tiny):
    """Logs validation and test metrics under one name, as Lightning allows."""

    def evaluate(self, split: str, batch: Any) -> None:
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))


def test_a_name_that_both_splits_log_is_judged_by_validation(tmp_path: Path) -> None:
    evaluation = Int8Evaluation(latency=None)
    fit(tmp_path, SameName(), DynamicQuantization(), ArtifactExport(["pt2"]), evaluation, enable_checkpointing=False)
    entry = manifest(tmp_path)["artifacts"][1]
    assert entry["metrics"].keys() == {"loss", "test/loss"}
    int8 = lq_plugin.load(tmp_path / "quantized" / entry["path"], factory=SameName)
    for name, loader in (("loss", Images().val_dataloader()), ("test/loss", Images().test_dataloader())):
        with torch.no_grad():
            truth = torch.stack([F.cross_entropy(int8(x), y) for x, y in loader]).mean().item()
        assert entry["metrics"][name] == pytest.approx(truth, rel=1e-5)


def test_the_step_to_the_live_weights_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = [DynamicQuantization(choice, checkpoint=choice) for choice in ("best", "last")]
    fit(tmp_path, Tiny(), *callbacks, ModelCheckpoint(tmp_path, save_top_k=0))
    out = " ".join(capsys.readouterr().out.split())
    for callback in callbacks:
        assert callback.candidate is not None
        assert callback.candidate.provenance.checkpoint == "live"
        assert f"none was saved for '{callback.name}', so the weights in memory are quantized" in out


def test_the_manifest_of_an_earlier_run_is_gone_before_anything_new_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise SystemExit("killed")

    fit(tmp_path, Tiny(), DynamicQuantization(), ArtifactExport(["pt2"]), enable_checkpointing=False)
    assert manifest(tmp_path)["artifacts"]
    monkeypatch.setattr(exporting, "export_one", killed)
    with pytest.raises(SystemExit, match="killed"):
        fit(tmp_path, Tiny(), DynamicQuantization(), ArtifactExport(["pt2"]), enable_checkpointing=False)
    assert [path.name for path in (tmp_path / "quantized").iterdir()] == ["dynamic"]


def test_loaders_that_no_validation_has_used_are_used_afterwards(tmp_path: Path) -> None:
    callbacks = [StaticQuantization(algorithms=()), ArtifactExport(["pt2"]), Int8Evaluation(latency=None)]
    made = trainer(tmp_path, *callbacks, num_sanity_val_steps=0, check_val_every_n_epoch=3, enable_checkpointing=False)
    made.fit(Tiny(), DataLoader(images(24, 1), 8), DataLoader(images(16, 2), 8))
    (artifact,) = manifest(tmp_path)["artifacts"]
    assert artifact["status"] in ("ok", "over_budget")
    assert artifact["metrics"]
