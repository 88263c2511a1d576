"""Calibration travels in checkpoints, and is united with the weights of the same one."""

from __future__ import annotations

import functools
import os
import re
import time
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
from lq_plugin.apps.fits import Fit, KeepFit
from lq_plugin.callbacks.untrained import without_training
from lq_plugin.checkpoints import read_file, with_weights
from lq_plugin.errors import CalibrationError
from lq_plugin.graph.calibration import Calibration, Provenance
from lq_plugin.observers import HistogramObserver, MinMaxObserver
from lq_plugin.store import Store

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


def test_the_chosen_checkpoints_weights_and_calibration_are_quantized(tmp_path: Path) -> None:
    kept = [
        ModelCheckpoint(tmp_path, "score", monitor="score", mode="max", save_last=True),
        ModelCheckpoint(tmp_path, "loss", monitor="val/loss", mode="min"),
    ]
    choices = {"best": "score", "best:val/loss": "loss", "best:score": "score", "last": "last"}
    callbacks = [StaticQuantization(f"static{n}", checkpoint=choice) for n, choice in enumerate(choices)]
    fit(tmp_path, Worsening(), *callbacks, *kept, max_epochs=2)
    assert content(tmp_path / "score.ckpt")["global_step"] == 3
    for callback, name in zip(callbacks, choices.values(), strict=True):
        assert callback.error is None
        assert callback.candidate is not None
        provenance = callback.candidate.calibration.provenance
        step = content(tmp_path / f"{name}.ckpt")["global_step"]
        assert (provenance.checkpoint, provenance.split, provenance.extra_pass) == (f"{name}.ckpt", "validate", False)
        assert (provenance.global_step, provenance.checkpoint_global_step) == (step, step)
        assert_equals_by_hand(callback.candidate, tmp_path / f"{name}.ckpt")


def test_live_weights_are_quantized_on_demand(tmp_path: Path) -> None:
    callback, model = StaticQuantization(checkpoint="live"), Worsening()
    made = fit(tmp_path, model, callback, ModelCheckpoint(tmp_path, "best", monitor="score", mode="max"), max_epochs=2)
    made.save_checkpoint(tmp_path / "now.ckpt")
    assert callback.candidate is not None
    assert callback.candidate.calibration.provenance.checkpoint == "live"
    assert_equals_by_hand(callback.candidate, tmp_path / "now.ckpt")


def test_live_weights_are_quantized_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    callbacks = [StaticQuantization(choice, checkpoint=choice) for choice in ("best", "last")]
    fit(tmp_path, Tiny(), *callbacks, enable_checkpointing=False)
    for callback in callbacks:
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


def test_a_sharded_checkpoint_is_passed_over_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Sharding(Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            (tmp_path / "best.ckpt").unlink()
            (tmp_path / "best.ckpt").mkdir()

    callback = StaticQuantization()
    fit(tmp_path, Tiny(), callback, Sharding(), ModelCheckpoint(tmp_path, "best"))
    assert callback.candidate is not None
    assert callback.candidate.calibration.provenance.checkpoint == "live"
    assert "best.ckpt' is not a file (sharded strategies save folders) and is not quantized" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kept", "options", "step", "extra"),
    [
        ({"every_n_train_steps": 2}, {}, 2, True),
        ({"every_n_train_steps": 3}, {"val_check_interval": 2}, 3, True),
        ({"save_on_train_epoch_end": True}, {"val_check_interval": 2}, 3, True),
        ({"save_on_train_epoch_end": True}, {}, 3, False),
        (
            {"every_n_train_steps": 2},
            {"val_check_interval": 2},
            2,
            False,
        ),  # of the same weights
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


def quantized(callback: StaticQuantization, path: Path) -> None:
    """Quantize a finished checkpoint, as lq-quantize does."""
    using = trainer(path.parent, callback)
    without_training(using, Tiny(), Images(), lambda choice: read_file(path), Store(path.parent / "store"))


class Changing(Callback):
    """Changes the weights when training ends: no step, and, done this way, no version that counts."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for parameter in pl_module.parameters():
            parameter.data.mul_(5)
        trainer.save_checkpoint(trainer.default_root_dir + "/changed.ckpt")


@pytest.mark.parametrize("choice", ["live", "last"])
def test_weights_that_changed_after_the_last_validation_are_calibrated_anew(choice: str, tmp_path: Path) -> None:
    callback = StaticQuantization(checkpoint="live")
    fit(tmp_path, Tiny(), callback, Changing(), enable_checkpointing=False)
    assert content(tmp_path / "changed.ckpt")["callbacks"][KEY]  # it holds the calibration of other weights
    if choice == "last":
        callback = StaticQuantization()
        quantized(callback, tmp_path / "changed.ckpt")
    assert callback.candidate is not None
    provenance = callback.candidate.calibration.provenance
    assert (provenance.global_step, provenance.checkpoint_global_step, provenance.extra_pass) == (3, 3, True)
    assert_equals_by_hand(callback.candidate, tmp_path / "changed.ckpt")
    assert provenance.digest == by_hand(tmp_path / "changed.ckpt").provenance.digest


@pytest.mark.parametrize("extra", [False, True])
def test_weights_swapped_for_validation_alone_are_not_those_that_were_calibrated(extra: bool, tmp_path: Path) -> None:
    """As moving averages of weights do it, which save the average in their checkpoints, or do not."""

    class Swapping(Callback):
        def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            for parameter in pl_module.parameters():
                parameter.data.mul_(4)

        def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            for parameter in pl_module.parameters():
                parameter.data.div_(4)

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            if not extra:
                own = dict(pl_module.named_parameters())
                states = checkpoint["state_dict"].items()
                checkpoint["state_dict"] = {name: value * 4 if name in own else value for name, value in states}

    callback = StaticQuantization()
    fit(tmp_path, Tiny(), Swapping(), callback, ModelCheckpoint(tmp_path, "kept"))
    assert callback.candidate is not None
    assert callback.candidate.calibration.provenance.extra_pass == extra
    assert_equals_by_hand(callback.candidate, tmp_path / "kept.ckpt")


@resumes
def test_a_calibration_that_names_no_graph_is_loaded_and_made_anew(tmp_path: Path) -> None:
    fit(tmp_path, Tiny(), StaticQuantization(), ModelCheckpoint(tmp_path, "kept"))
    saved = content(tmp_path / "kept.ckpt")
    for name in ("digest", "structure"):  # as an earlier version saved it
        del saved["callbacks"][KEY]["calibration"]["provenance"][name]
    torch.save(saved, tmp_path / "kept.ckpt")
    callback = StaticQuantization()
    again = trainer(tmp_path, callback, ModelCheckpoint(tmp_path, "kept"))
    again.fit(Tiny(), datamodule=Images(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    assert callback.calibration is not None
    assert callback.candidate is not None
    assert callback.candidate.calibration.provenance.extra_pass
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
def test_an_older_checkpoint_may_hold_any_hyperparameters_too(tmp_path: Path) -> None:
    kept = {"monitor": "score", "mode": "max", "filename": "best"}
    fit(tmp_path, Configured(), StaticQuantization(), ModelCheckpoint(tmp_path, **kept))
    callback = StaticQuantization()
    again = trainer(tmp_path, callback, ModelCheckpoint(tmp_path, **kept), max_epochs=2)
    again.fit(Configured(), datamodule=Images(), ckpt_path=tmp_path / "best.ckpt", weights_only=False)
    assert again.global_step == 6
    assert callback.candidate is not None
    assert callback.candidate.calibration.provenance.checkpoint == "best.ckpt"
    assert callback.candidate.calibration.provenance.global_step == 3


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def planted_run(folder: Path, planted: dict[str, Any], callback: StaticQuantization, *others: Callback) -> Path:
    """Resume from a checkpoint that names a planted file as the best one; return what that would make if unpickled."""
    marker, file = folder / "ran", folder / "planted.ckpt"
    kept = ModelCheckpoint(folder, "last", monitor="score", mode="max")
    fit(folder, Worsening(), StaticQuantization(), kept)
    resumed = content(folder / "last.ckpt")
    torch.save(resumed | {"planted": Planted(marker)} | planted, file)
    tomorrow = time.time() + 86400
    os.utime(file, (tomorrow, tomorrow))
    resumed["callbacks"][kept.state_key]["best_model_path"] = str(file)
    torch.save(resumed, folder / "last.ckpt")
    kept = ModelCheckpoint(folder, "last", monitor="score", mode="max")  # which finds nothing better
    again = trainer(folder, callback, *others, kept, max_epochs=2)
    again.fit(Worsening(), datamodule=Images(), ckpt_path=folder / "last.ckpt", weights_only=True)
    return marker


@resumes
def test_what_a_resumed_checkpoint_names_as_the_best_one_is_not_unpickled(tmp_path: Path) -> None:
    callback = StaticQuantization()
    marker = planted_run(tmp_path, {}, callback)
    assert not marker.exists()
    assert callback.candidate is not None
    assert callback.candidate.calibration.provenance.checkpoint == "planted.ckpt"


@resumes
@pytest.mark.parametrize("planted", [{"state_dict": None}, {"state_dict": {"net.0.weight": Planted(Path("ran"))}}])
def test_planted_weights_are_a_named_error(
    planted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    callback = StaticQuantization()
    marker = planted_run(tmp_path, planted, callback)
    assert not marker.exists()
    assert callback.candidate is None
    assert callback.error is not None
    assert re.match(
        r"ConfigError: checkpoint: '.*planted.ckpt' (holds no state_dict|has a \w+.mkdir as 'net.0.weight')",
        callback.error,
    )


@resumes
def test_a_planted_checkpoint_is_not_kept_for_other_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = Fit(tmp_path / "fits" / "digest")
    marker = planted_run(tmp_path, {"state_dict": None}, StaticQuantization(), KeepFit(kept))
    assert not marker.exists()
    assert not kept.done
    assert "the fit is not cached for other jobs (ConfigError: checkpoint: " in capsys.readouterr().out


DAMAGED_CALIBRATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "not a dict": lambda statistics, provenance: 3,
    "no statistics": lambda statistics, provenance: {"provenance": provenance},
    "a list": lambda statistics, provenance: {"statistics": [1, 2], "provenance": provenance},
    "another name": lambda statistics, provenance: {"statistics": {1: statistics["x"]}, "provenance": provenance},
    "numbers": lambda statistics, provenance: {"statistics": {"x": {"low": 1.0}}, "provenance": provenance},
    "not a number": lambda statistics, provenance: {
        "statistics": {"x": statistics["x"] | {"limit": torch.tensor(torch.nan)}},
        "provenance": provenance,
    },
    "of any size": lambda statistics, provenance: {
        "statistics": {"x": statistics["x"] | {"counts": torch.zeros(1).expand(10**12)}},
        "provenance": provenance,
    },
    "no provenance": lambda statistics, provenance: {"statistics": statistics, "provenance": None},
    "unknown": lambda statistics, provenance: {"statistics": statistics, "provenance": provenance | {"more": 1}},
    "types": lambda statistics, provenance: {"statistics": statistics, "provenance": provenance | {"samples": "many"}},
    "truth": lambda statistics, provenance: {
        "statistics": statistics,
        "provenance": provenance | {"global_step": True},
    },
}


def calibration() -> Calibration:
    provenance = Provenance("live", 3, None, "validate", samples=16, batches=2, observer="histogram", seed=0)
    return Calibration({"x": HistogramObserver().update({}, torch.ones(3))}, provenance)


@pytest.mark.parametrize("damage", DAMAGED_CALIBRATIONS)
def test_what_is_no_calibration_is_a_named_error(damage: str) -> None:
    saved = calibration().state_dict()
    assert Calibration.from_state_dict(saved).provenance == calibration().provenance
    with pytest.raises(CalibrationError, match="calibration: its saved state is damaged"):
        Calibration.from_state_dict(DAMAGED_CALIBRATIONS[damage](saved["statistics"], saved["provenance"]))


def test_statistics_tell_what_kind_of_observer_made_them() -> None:
    assert calibration().made_by(HistogramObserver())
    assert not calibration().made_by(MinMaxObserver())


@resumes
@pytest.mark.parametrize("part", ["limit", "other"])
def test_a_damaged_calibration_in_a_checkpoint_is_made_anew(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, Tiny(), StaticQuantization(), ModelCheckpoint(tmp_path, "kept"))
    saved = content(tmp_path / "kept.ckpt")
    for statistic in saved["callbacks"][KEY]["calibration"]["statistics"].values():
        statistic[part] = torch.tensor(torch.nan if part == "limit" else 1.0)
    torch.save(saved, tmp_path / "kept.ckpt")
    callback = StaticQuantization()
    again = trainer(tmp_path, callback, ModelCheckpoint(tmp_path, "kept"))
    again.fit(Tiny(), datamodule=Images(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    assert callback.candidate is not None
    assert callback.candidate.calibration.provenance.extra_pass
    assert_equals_by_hand(callback.candidate, tmp_path / "kept.ckpt")
    told = "calibration: its saved state is damaged" in capsys.readouterr().out
    assert told == (part == "limit")


class Renamed(nn.Identity):
    """Weights of its first version had another name."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def _load_from_state_dict(self, state: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        if local_metadata.get("version", 1) < 2:
            state[f"{prefix}scale"] = state.pop(f"{prefix}scale") * 1000
        super()._load_from_state_dict(state, prefix, local_metadata, *rest)


def test_versions_of_modules_reach_those_that_read_them(tmp_path: Path) -> None:
    model = Tiny()
    model.net.append(Renamed())
    kept = ModelCheckpoint(tmp_path, "kept")
    fit(tmp_path, model, kept)
    loaded = with_weights(model, read_file(tmp_path / "kept.ckpt"))
    assert torch.equal(loaded.state_dict()["net.6.scale"], model.state_dict()["net.6.scale"])


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
