"""Calibration travels in checkpoints, and is united with the weights of the same one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tiny import Images, Tiny, fit, trainer
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Candidate, Scheme, StaticQuantization

KEY = "StaticQuantization[static]"
resumes = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
RELU = functools.partial(nn.ReLU, inplace=False)


class Worsening(Tiny):
    """Its score is best after the first epoch, whatever it learns; its loss is logged too."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("score", -float(self.trainer.global_step))


def content(path: str | Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


def batches() -> list[Tensor]:
    return [x for x, _ in Images().val_dataloader()]


def by_hand(path: str | Path, scheme: Scheme | str = "static") -> Candidate:
    """Quantize the weights of a checkpoint without a Trainer."""
    model = Tiny()
    model.load_state_dict(content(path)["state_dict"])
    return lq_plugin.quantize(model.eval(), batches(), scheme)


def assert_equals_by_hand(candidate: Candidate | None, path: str | Path) -> None:
    assert candidate is not None
    expected = by_hand(path, candidate.scheme)
    assert candidate.calibration.statistics.keys() == expected.calibration.statistics.keys()
    for name, statistic in expected.calibration.statistics.items():
        for key, tensor in statistic.items():
            assert torch.equal(candidate.calibration.statistics[name][key], tensor), name
    for batch in batches():
        (got,), (wanted,) = (made.converted("torch").module(batch) for made in (candidate, expected))
        assert torch.equal(got, wanted)


def test_every_checkpoint_carries_the_calibration_of_its_own_step(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", save_last=True)
    fit(tmp_path, Tiny(), StaticQuantization(), kept, max_epochs=2)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert [file.name for file in files] == ["last.ckpt", "step=3.ckpt", "step=6.ckpt"]
    for file in files:
        saved = content(file)
        calibration = saved["callbacks"][KEY]["calibration"]
        assert calibration["provenance"]["global_step"] == saved["global_step"]
        assert calibration["statistics"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("best", "score.ckpt"), ("best:val/loss", "loss.ckpt"), ("best:score", "score.ckpt"), ("last", "last.ckpt")],
)
def test_the_chosen_checkpoints_weights_and_calibration_are_quantized(
    choice: str, expected: str, tmp_path: Path
) -> None:
    kept = [
        ModelCheckpoint(tmp_path, "score", monitor="score", mode="max", save_last=True),
        ModelCheckpoint(tmp_path, "loss", monitor="val/loss", mode="min"),
    ]
    callback = StaticQuantization(checkpoint=choice)
    fit(tmp_path, Worsening(), callback, *kept, max_epochs=2)
    assert callback.error is None
    assert callback.candidate is not None
    provenance = callback.candidate.calibration.provenance
    step = content(tmp_path / expected)["global_step"]
    assert (provenance.checkpoint, provenance.split, provenance.extra_pass) == (expected, "validate", False)
    assert (provenance.global_step, provenance.checkpoint_global_step) == (step, step)
    if expected == "score.ckpt":
        assert step == 3
    assert_equals_by_hand(callback.candidate, tmp_path / expected)


def test_live_weights_are_quantized_on_demand(tmp_path: Path) -> None:
    callback, model = StaticQuantization(checkpoint="live"), Worsening()
    made = fit(tmp_path, model, callback, ModelCheckpoint(tmp_path, "best", monitor="score", mode="max"), max_epochs=2)
    made.save_checkpoint(tmp_path / "now.ckpt")
    assert callback.candidate is not None
    assert callback.candidate.calibration.provenance.checkpoint == "live"
    assert_equals_by_hand(callback.candidate, tmp_path / "now.ckpt")


@pytest.mark.parametrize("choice", ["best", "last"])
def test_live_weights_are_quantized_where_there_is_no_checkpoint(choice: str, tmp_path: Path) -> None:
    callback = StaticQuantization(checkpoint=choice)
    fit(tmp_path, Tiny(), callback, enable_checkpointing=False)
    assert callback.candidate is not None
    provenance = callback.candidate.calibration.provenance
    assert (provenance.checkpoint, provenance.global_step, provenance.extra_pass) == ("live", 3, False)


def test_the_last_checkpoint_stands_in_where_the_best_one_is_gone(tmp_path: Path) -> None:
    class Removing(Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            (tmp_path / "best.ckpt").unlink()

    callback = StaticQuantization()
    kept = ModelCheckpoint(tmp_path, "best", monitor="score", mode="max", save_last=True)
    fit(tmp_path, Worsening(), callback, Removing(), kept, max_epochs=2)
    assert callback.candidate is not None
    assert callback.candidate.calibration.provenance.checkpoint == "last.ckpt"
    assert_equals_by_hand(callback.candidate, tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("kept", "options", "step", "extra"),
    [
        ({"every_n_train_steps": 2}, {}, 2, True),
        ({"every_n_train_steps": 3}, {"val_check_interval": 2}, 3, True),
        ({"save_on_train_epoch_end": True}, {"val_check_interval": 2}, 3, True),
        ({"save_on_train_epoch_end": True}, {}, 3, False),
        ({"every_n_train_steps": 2}, {"val_check_interval": 2}, 2, True),
        ({}, {"val_check_interval": 2, "monitor": "val/loss"}, 2, False),
    ],
    ids=["before validation", "after validation", "end of epoch", "validated epoch", "same step", "validation"],
)
def test_one_pass_is_run_where_a_checkpoint_has_no_calibration_of_its_weights(
    kept: dict[str, Any], options: dict[str, Any], step: int, extra: bool, tmp_path: Path
) -> None:
    monitor = options.pop("monitor", None) if "monitor" in options else None
    callback = StaticQuantization()
    fit(tmp_path, Tiny(), callback, ModelCheckpoint(tmp_path, "kept", monitor=monitor, **kept), **options)
    assert callback.error is None
    assert callback.candidate is not None
    provenance = callback.candidate.calibration.provenance
    assert (provenance.checkpoint, provenance.checkpoint_global_step) == ("kept.ckpt", step)
    assert (provenance.global_step, provenance.extra_pass) == (step, extra)
    assert provenance.samples == 16
    assert_equals_by_hand(callback.candidate, tmp_path / "kept.ckpt")


class Configured(Worsening):
    """Its hyperparameters are more than tensors and plain values."""

    def __init__(self, activation: Callable[[], nn.Module] = RELU) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_a_checkpoint_of_this_fit_may_hold_any_hyperparameters(tmp_path: Path) -> None:
    callback = StaticQuantization()
    fit(tmp_path, Configured(), callback, ModelCheckpoint(tmp_path, "best", monitor="score", mode="max"), max_epochs=2)
    assert callback.candidate is not None
    assert callback.candidate.calibration.provenance.checkpoint == "best.ckpt"
    assert callback.candidate.calibration.provenance.global_step == 3


@resumes
def test_an_older_checkpoint_is_not_unpickled(tmp_path: Path) -> None:
    kept = {"monitor": "score", "mode": "max", "filename": "best"}
    fit(tmp_path, Configured(), StaticQuantization(), ModelCheckpoint(tmp_path, **kept))
    callback = StaticQuantization()
    again = trainer(tmp_path, callback, ModelCheckpoint(tmp_path, **kept), max_epochs=2)
    again.fit(Configured(), datamodule=Images(), ckpt_path=tmp_path / "best.ckpt", weights_only=False)
    assert again.global_step == 6
    assert callback.candidate is None
    assert callback.error is not None
    assert "checkpoint: 'best.ckpt' holds more than tensors and plain values" in callback.error


@resumes
def test_a_resumed_run_quantizes_the_best_of_both_runs(tmp_path: Path) -> None:
    def kept() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, "best", monitor="score", mode="max", save_last=True)

    fit(tmp_path, Worsening(), StaticQuantization(), kept())
    callback = StaticQuantization()
    again = trainer(tmp_path, callback, kept(), max_epochs=3)
    again.fit(Worsening(), datamodule=Images(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert callback.candidate is not None
    provenance = callback.candidate.calibration.provenance
    assert (provenance.checkpoint, provenance.global_step, provenance.extra_pass) == ("best.ckpt", 3, False)
    assert content(tmp_path / "last.ckpt")["callbacks"][KEY]["calibration"]["provenance"]["global_step"] == 9
    assert_equals_by_hand(callback.candidate, tmp_path / "best.ckpt")


@resumes
def test_a_resumed_run_that_is_finished_already_is_quantized(tmp_path: Path) -> None:
    fit(tmp_path, Tiny(), StaticQuantization(), ModelCheckpoint(tmp_path, "kept"))
    callback = StaticQuantization()
    again = trainer(tmp_path, callback, ModelCheckpoint(tmp_path, "kept"))
    again.fit(Tiny(), datamodule=Images(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    assert callback.error is None
    assert_equals_by_hand(callback.candidate, tmp_path / "kept.ckpt")


@resumes
def test_statistics_of_another_observer_are_not_used(tmp_path: Path) -> None:
    def kept() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, "best", monitor="score", mode="max", save_last=True)

    fit(tmp_path, Worsening(), StaticQuantization(observer="minmax"), kept())
    callback = StaticQuantization(observer="histogram")
    again = trainer(tmp_path, callback, kept(), max_epochs=2)
    again.fit(Worsening(), datamodule=Images(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert callback.candidate is not None
    provenance = callback.candidate.calibration.provenance
    assert (provenance.observer, provenance.global_step, provenance.extra_pass) == ("histogram", 3, True)
    assert_equals_by_hand(callback.candidate, tmp_path / "best.ckpt")
