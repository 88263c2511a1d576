"""Dynamic quantization when fit ends: of the right weights, named errors, and no trace in the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tiny import fit
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.regression import MeanAbsoluteError

import lq_plugin
from lq_plugin import ArtifactExport, Budget, DynamicQuantization, Int8Evaluation, Latency, Scheme, StaticQuantization
from lq_plugin.errors import ConfigError

STEPS, FEATURES = 6, 4
GENEROUS = Budget("val/mae", 10.0, mode="min")  # any artifact is within it


def series(samples: int, seed: int) -> TensorDataset:
    x = torch.randn(samples, STEPS, FEATURES, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum((1, 2)).unsqueeze(1))


class Series(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(series(24, 1), 8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(series(16, 2), 8)


class WithoutValidation(Series):
    val_dataloader = L.LightningDataModule.val_dataloader


class Forecaster(L.LightningModule):
    """An LSTM and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, 8, batch_first=True)
        self.head = nn.Linear(8, 1)
        self.mae = MeanAbsoluteError()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.mae(self(batch[0]), batch[1])
        self.log("val/mae", self.mae)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Branching(Forecaster):
    """Cannot be captured as a graph."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 if x.sum() > 1e6 else x)


class Convolutional(Forecaster):
    """Has nothing for dynamic quantization."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.Identity(), nn.Identity()
        self.net = nn.Conv1d(STEPS, 1, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).flatten(1)


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "quantized" / "manifest.json").read_text()))


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    return {f"{entry['candidate']}/{entry['format']}": entry for entry in manifest(folder)["artifacts"]}


def test_every_format_is_made_and_evaluated_and_what_cannot_be_is_listed(tmp_path: Path) -> None:
    evaluation = Int8Evaluation(latency=None, budget=GENEROUS)
    kept = ModelCheckpoint(tmp_path, "kept", monitor="val/mae")
    fit(tmp_path, Forecaster(), DynamicQuantization(), ArtifactExport(), evaluation, kept, data=Series())
    made = entries(tmp_path)
    assert list(made) == ["dynamic/onnx", "dynamic/openvino", "dynamic/pt2", "dynamic/torch"]
    assert [entry["status"] for entry in made.values()] == ["ok", "unsupported", "unsupported", "ok"]
    assert "recurrent layers have no dynamic INT8 form here for openvino" in made["dynamic/openvino"]["error"]
    assert "torch.export cannot capture" in made["dynamic/pt2"]["error"]
    for name in ("dynamic/onnx", "dynamic/torch"):
        assert {"lstm", "linear"} == {op["op"] for op in made[name]["quantized_ops"]}
    for name in ("dynamic/onnx", "dynamic/torch"):
        assert made[name]["metrics"].keys() == {"val/mae"}
        assert made[name]["sqnr_db"] > 20
    content = manifest(tmp_path)
    assert content["calibration"]["dynamic"]["checkpoint"] == "kept.ckpt"
    assert content["calibration"]["dynamic"]["samples"] == 0
    assert content["config"]["quantization"]["dynamic"]["observer"] is None
    assert [(step["algorithm"], step["outcome"]) for step in content["steps"]] == [("rounding", "not_tried")]
    assert "16 samples are too few" in content["steps"][0]["reason"]


class Long(Series):
    def val_dataloader(self) -> Any:
        return DataLoader(series(96, 2), 16)


def test_the_rounding_is_learnt_from_validation_samples_and_listed(tmp_path: Path) -> None:
    callback = DynamicQuantization(targets_cpu="any", algorithm_samples=64, seed=3)
    fit(tmp_path, Forecaster(), callback, ArtifactExport(["onnx"]), data=Long(), enable_checkpointing=False)
    content = manifest(tmp_path)
    (step,) = content["steps"]
    assert step["algorithm"] == "rounding"
    assert step["outcome"] in ("kept", "refused")
    assert step["before"].keys() == step["after"].keys() == {"torch"}
    learnt = content["calibration"]["dynamic"]["algorithms"]
    assert (learnt["samples"], learnt["judged"], learnt["seed"]) == (48, 16, 3)
    assert 0 < learnt["share"] < 1


def test_the_weights_are_those_of_the_chosen_checkpoint(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, monitor="val/mae", mode="max")
    model = Forecaster()
    fit(tmp_path, model, DynamicQuantization(), ArtifactExport(["onnx"]), kept, data=Series(), max_epochs=3)
    best = Forecaster()
    best.load_state_dict(torch.load(kept.best_model_path, weights_only=True)["state_dict"])
    assert not torch.equal(best.head.weight, model.head.weight)
    by_hand = lq_plugin.quantize(best, [series(8, 2).tensors[0]], "dynamic")
    expected = lq_plugin.load(lq_plugin.export(by_hand, tmp_path / "hand", ["torch"])["torch"].path, factory=Forecaster)
    loaded = lq_plugin.load(tmp_path / "quantized/dynamic/torch", factory=Forecaster)
    x = series(4, 9).tensors[0]
    assert torch.equal(loaded(x), expected(x))


def test_a_module_that_cannot_be_captured_still_has_its_torch_artifact(tmp_path: Path) -> None:
    evaluation = Int8Evaluation(latency=Latency(rounds=1, seconds=0.01))
    callbacks = [DynamicQuantization(), ArtifactExport(["onnx"]), evaluation]
    fit(tmp_path, Branching(), *callbacks, data=Series(), enable_checkpointing=False)
    made = entries(tmp_path)
    assert "cannot be captured by torch.export" in made["dynamic/onnx"]["error"]
    assert made["dynamic/onnx"]["status"] == "failed"
    assert made["dynamic/torch"]["sqnr_db"] > 20
    assert made["dynamic/torch"]["speedup"].keys() == {"vs_torch_fp32", "vs_best_fp32"}
    assert manifest(tmp_path)["fp32"]["latency_ms"].keys() == {"torch"}


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_run_without_validation_is_quantized_too(tmp_path: Path) -> None:
    callbacks = [DynamicQuantization(), ArtifactExport(["onnx"])]
    fit(tmp_path, Forecaster(), *callbacks, data=WithoutValidation(), enable_checkpointing=False)
    made = [(entry["status"], entry["error"]) for entry in entries(tmp_path).values()]
    assert made == [("not_evaluated", None)] * 2  # nothing evaluates them


def test_static_and_dynamic_stand_side_by_side_with_one_fp32(tmp_path: Path) -> None:
    evaluation = Int8Evaluation(latency=Latency(rounds=1, seconds=0.01), budget=GENEROUS)
    callbacks = [DynamicQuantization(), StaticQuantization(), ArtifactExport(["onnx"], placement="runtime"), evaluation]
    fit(tmp_path, Forecaster(), *callbacks, data=Series(), enable_checkpointing=False)
    made = entries(tmp_path)
    assert list(made) == ["dynamic/onnx", "dynamic/torch", "static/onnx"]
    measured = {name: entry["latency_ms"] for name, entry in made.items()}
    assert {latency["batch_size"] for latency in measured.values()} == {1}
    assert all(made[name]["speedup"]["vs_torch_fp32"] > 0 for name in measured)
    assert made["static/onnx"]["reload_max_difference"] < 1e-5
    assert manifest(tmp_path)["fp32"]["latency_ms"].keys() == {"torch", "onnxruntime"}
    fastest = min(measured, key=lambda name: measured[name]["median"])
    is_faster = measured[fastest]["median"] <= min(manifest(tmp_path)["fp32"]["latency_ms"].values())
    assert manifest(tmp_path)["selected"] == (fastest if is_faster else None)


BEFORE_TRAINING: dict[str, tuple[Callable[[], list[Callback]], type[Forecaster], str]] = {
    "module": (
        lambda: [DynamicQuantization(skip=["heat"])],
        Forecaster,
        "skip: 'heat' is unknown. Did you mean 'head'",
    ),
    "kind": (lambda: [DynamicQuantization(only=["op:lsmt"])], Forecaster, "only: 'op:lsmt' is unknown. .*'op:lstm'"),
    "absent kind": (lambda: [DynamicQuantization(skip=["op:gru"])], Forecaster, "skip: 'op:gru' matches no"),
    "target": (
        lambda: [DynamicQuantization(target="hed")],
        Forecaster,
        "target: 'hed' is unknown. Did you mean 'head'",
    ),
    "nothing to quantize": (lambda: [DynamicQuantization()], Convolutional, "target: nothing in it can be quantized"),
    "format": (
        lambda: [StaticQuantization(), ArtifactExport(["torch"])],
        Forecaster,
        r"formats: none of \['torch'\] can be made from a static candidate",
    ),
}


@pytest.mark.parametrize(("callbacks", "model", "said"), BEFORE_TRAINING.values(), ids=BEFORE_TRAINING)
def test_what_cannot_work_is_refused_before_training(
    callbacks: Callable[[], list[Callback]], model: type[Forecaster], said: str, tmp_path: Path
) -> None:
    built = model()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    with pytest.raises(ConfigError, match=said):
        fit(tmp_path, built, *callbacks(), data=Series(), enable_checkpointing=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in built.state_dict().items())
    assert not (tmp_path / "quantized").exists()
    assert "forward" not in built.__dict__


class Around(Forecaster):
    """Its validation goes around its own forward."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/mean", self.lstm(batch[0])[0].mean())


def test_a_target_that_validation_never_calls_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"forward of 'Around' is never called in validation_step.*'lstm', 'head'"):
        fit(tmp_path, Around(), DynamicQuantization(), data=Series(), enable_checkpointing=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"observer": "minmax"}, "observer: MinMaxObserver|observer: 'minmax' is not available for dynamic"),
        ({"activation_dtype": "int8"}, "activation_dtype: 'int8' is not available for dynamic quantization"),
        ({"activation_symmetric": True}, "activation_symmetric: True is not available"),
        ({"weight_symmetric": False}, "weight_symmetric: False is not available"),
    ],
)
def test_a_scheme_refuses_what_dynamic_kernels_do_not_have(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Scheme("dynamic", **options)


def test_calibrating_for_dynamic_is_refused() -> None:
    with pytest.raises(ConfigError, match="scheme: 'dynamic' needs no calibration"):
        lq_plugin.calibrate(nn.Linear(2, 2), [torch.zeros(2, 2)], "dynamic")


class Uncopied(list[Tensor]):
    def __iter__(self) -> Any:
        raise RuntimeError("only by index")


class OfUncopied(Forecaster):
    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        return super().forward(x[0] if isinstance(x, list) else x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/mae", F.l1_loss(self(Uncopied([batch[0]])), batch[1]))


def test_a_call_that_cannot_be_copied_fails_the_candidate_and_not_the_training(tmp_path: Path) -> None:
    dynamic = DynamicQuantization()
    trainer = L.Trainer(
        max_epochs=1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=[dynamic],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(OfUncopied(), datamodule=Series())
    assert trainer.state.finished
    assert "only by index" in (dynamic.error or "")
