"""Int8Evaluation reports what the artifacts on disk do, in the module's own loop, and leaves everything as it was."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny import CLASSES, SIDE, Images, Tiny, fit, images, trainer
from torch import Tensor, nn
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
    Scheme,
    StaticQuantization,
    evaluate,
)
from lq_plugin.errors import ConfigError
from lq_plugin.graph.prepare import prepare

FORMATS = ("onnx", "openvino", "pt2")
ENTRY = {
    "candidate": str,
    "method": str,
    "runtime": str,
    "format": str,
    "path": str,
    "sha256": dict,
    "size_bytes": int,
    "metrics": dict,
    "delta": dict,
    "latency_ms": (dict, type(None)),
    "speedup": (dict, type(None)),
    "sqnr_db": float,
    "reload_max_difference": (float, type(None)),
    "quantized_ops": list,
    "float_ops": list,
    "kernels": (dict, type(None)),
    "status": str,
    "error": type(None),
}


@dataclass(frozen=True)
class Run:
    folder: Path
    trainer: L.Trainer
    model: Tiny
    data: Images
    evaluation: Int8Evaluation
    before: dict[str, Any]

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "quantized" / "manifest.json").read_text()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One epoch, every format, evaluated on both splits."""
    folder = tmp_path_factory.mktemp("run")
    L.seed_everything(5, verbose=False)
    model, data = Tiny(), Images(val_samples=40)
    before = dict(data.__dict__)
    evaluation = Int8Evaluation(latency=None)
    kept = ModelCheckpoint(folder / "kept", "best", monitor="val/acc", mode="max")
    logger = CSVLogger(folder, "", "")
    callbacks = [StaticQuantization(), ArtifactExport(FORMATS), evaluation, kept]
    made = fit(folder, model, *callbacks, data=data, logger=logger)
    return Run(folder, made, model, data, evaluation, before)


@pytest.fixture(scope="module")
def weights(run: Run) -> Tiny:
    """The checkpoint's weights."""
    model = Tiny()
    model.load_state_dict(torch.load(run.folder / "kept" / "best.ckpt", weights_only=True)["state_dict"])
    return model.eval()


def recomputed(forward: Callable[[Tensor], Tensor], loader: Any) -> tuple[float, float]:
    """Mean loss and accuracy, without Lightning and torchmetrics."""
    with torch.no_grad():
        pairs = [(forward(x), y) for x, y in loader]
    logits, labels = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


def test_metrics_are_those_of_the_artifacts_on_disk(run: Run, weights: Tiny) -> None:
    for split, loader in (("val", run.data.val_dataloader()), ("test", run.data.test_dataloader())):
        fp32 = recomputed(weights, loader)
        reported = run.manifest["fp32"]["metrics"]
        assert (reported[f"{split}/loss"], reported[f"{split}/acc"]) == pytest.approx(fp32, rel=1e-5)
        for entry in run.manifest["artifacts"]:
            int8 = recomputed(lq_plugin.load(run.folder / "quantized" / entry["path"]), loader)
            assert (entry["metrics"][f"{split}/loss"], entry["metrics"][f"{split}/acc"]) == pytest.approx(
                int8, rel=1e-5
            )
            assert entry["metrics"][f"{split}/loss"] != reported[f"{split}/loss"]
            assert entry["delta"][f"{split}/loss"] == pytest.approx(int8[0] - fp32[0], abs=1e-5)


def test_fidelity_is_that_of_the_validation_outputs(run: Run, weights: Tiny) -> None:
    for entry in run.manifest["artifacts"]:
        module, signal, noise = lq_plugin.load(run.folder / "quantized" / entry["path"]), 0.0, 0.0
        with torch.no_grad():
            for x, _ in run.data.val_dataloader():
                signal += weights(x).double().square().sum().item()
                noise += (weights(x).double() - module(x).double()).square().sum().item()
        assert entry["sqnr_db"] == pytest.approx(10 * math.log10(signal / noise), abs=1e-3)


def test_the_manifest_follows_its_schema(run: Run, weights: Tiny) -> None:
    manifest, root = run.manifest, run.folder / "quantized"
    assert manifest["schema_version"] == 1
    assert manifest.keys() >= {"fp32", "artifacts", "selected", "budget", "calibration", "environment", "config"}
    assert [entry["format"] for entry in manifest["artifacts"]] == list(FORMATS)
    for entry in manifest["artifacts"]:
        assert entry.keys() >= ENTRY.keys()
        for key, kind in ENTRY.items():
            assert isinstance(entry[key], kind), key
        assert entry["path"] == f"static/{entry['format']}"
        assert entry["sha256"] == {
            name: hashlib.sha256((root / entry["path"] / name).read_bytes()).hexdigest() for name in entry["sha256"]
        }
        files = {file.name for file in (root / entry["path"]).iterdir()} - {"artifact.json", "README.md", "run.py"}
        assert files == entry["sha256"].keys()
        said = (root / entry["path"] / "README.md").read_text()
        assert f"`{manifest['fp32']['metrics']['val/loss']:.4f}` | `{entry['metrics']['val/loss']:.4f}`" in said
        assert entry["size_bytes"] == sum((root / entry["path"] / name).stat().st_size for name in files)
        assert all(math.isfinite(value) for value in (*entry["metrics"].values(), entry["sqnr_db"]))
        assert {op["op"] for op in entry["quantized_ops"]} == {"conv2d", "linear"}
        assert all(op.keys() == {"name", "op", "reason"} for op in entry["float_ops"])
        assert (entry["kernels"] is None) == (entry["format"] == "pt2")
        assert entry["kernels"] is None or entry["kernels"].keys() == {"int8", "float", "fell_back"}
    assert manifest["fp32"]["size_bytes"] == sum(t.nbytes for t in Tiny().state_dict().values())
    calibration, graph = manifest["calibration"]["static"], prepare(weights, [torch.ones(4, 1, SIDE, SIDE)])
    assert all(step["peak_memory_bytes"] > 0 and step["seconds"] >= 0 for step in manifest["steps"])
    assert [*dict.fromkeys(step["algorithm"] for step in manifest["steps"])] == [*Scheme().algorithm_names]
    assert {step["outcome"] for step in manifest["steps"]} <= {"kept", "refused"}
    assert {each["name"] for each in manifest["sensitivity"]["static"]} == {"net.0.conv2d", "net.5.linear"}
    assert calibration == {
        "checkpoint": "best.ckpt",
        "global_step": 3,
        "checkpoint_global_step": 3,
        "split": "validate",
        "samples": 40,
        "batches": 5,
        "observer": "histogram",
        "seed": 0,
        "observed": StaticQuantization().plan.digest,
        "extra_pass": False,
        "digest": graph.digest,
        "structure": graph.structure,
        "algorithms": {"samples": 30, "judged": 10, "left_out": 0, "share": 1.0, "seed": 0},
    }
    assert manifest["budget"] == {"metric": "val/acc", "max_drop": 0.01, "relative": True, "mode": "max"}
    assert manifest["environment"]["versions"].keys() >= {"python", "torch", "torchao", "lightning", "onnxruntime"}
    assert manifest["config"]["quantization"]["static"]["samples"] == 512
    assert manifest["config"]["evaluation"]["latency"] is None


def test_the_attribute_holds_what_is_on_disk(run: Run) -> None:
    assert run.evaluation.manifest is not None
    assert run.evaluation.manifest.to_json() == run.manifest


def test_nothing_is_selected_without_latency(run: Run) -> None:
    assert run.manifest["selected"] is None


def test_the_logger_gets_every_figure(run: Run) -> None:
    rows = list(csv.DictReader((run.folder / "metrics.csv").read_text().splitlines()))
    logged = {key: float(value) for key, value in rows[-1].items() if key.startswith("quantized/") and value}
    expected = {}
    for entry in run.manifest["artifacts"]:
        prefix = f"quantized/static/{entry['format']}"
        expected |= {f"{prefix}/{name}": value for name, value in entry["metrics"].items()}
        expected |= {f"{prefix}/size_bytes": entry["size_bytes"], f"{prefix}/sqnr_db": entry["sqnr_db"]}
    assert logged == pytest.approx(expected)


def test_the_users_objects_are_untouched(run: Run) -> None:
    assert run.model.trainer is run.trainer
    assert run.data.trainer is run.trainer
    assert "forward" not in run.model.__dict__
    now = run.data.__dict__
    assert {name: now[name] for name in run.before} == run.before | {"trainer": run.trainer}
    assert not {"setup", "prepare_data", "teardown", "val_dataloader", "test_dataloader"} & now.keys()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_the_trainer_validates_and_tests_afterwards(run: Run, weights: Tiny) -> None:
    (validated,) = run.trainer.validate(run.model, datamodule=run.data, verbose=False)
    assert validated["val/loss"] == pytest.approx(recomputed(run.model.eval(), run.data.val_dataloader())[0], rel=1e-5)
    best = str(run.folder / "kept" / "best.ckpt")
    (tested,) = run.trainer.test(run.model, datamodule=run.data, ckpt_path=best, weights_only=True, verbose=False)
    assert tested["test/acc"] == pytest.approx(recomputed(weights, run.data.test_dataloader())[1], rel=1e-5)


def test_the_functional_twin_gives_the_same_metrics(run: Run, weights: Tiny) -> None:
    entry = run.manifest["artifacts"][0]
    path = run.folder / "quantized" / entry["path"]
    loader = run.data.test_dataloader()
    found = evaluate(weights, loader, path, split="test", metrics={"own": MulticlassAccuracy(CLASSES, average="micro")})
    assert found == pytest.approx(
        {"test/loss": entry["metrics"]["test/loss"], "test/acc": entry["metrics"]["test/acc"]}
        | {"own": entry["metrics"]["test/acc"]}
    )
    assert evaluate(weights, loader, split="test") == pytest.approx(
        {name: value for name, value in run.manifest["fp32"]["metrics"].items() if name.startswith("test/")}
    )
    assert weights._trainer is None


def quantized(folder: Path, model: Any, data: Any = None, **options: Any) -> dict[str, Any]:
    """Train, export as pt2, evaluate with these options, and return the manifest."""
    evaluation = Int8Evaluation(**{"latency": None, **options})
    callbacks = [StaticQuantization(), ArtifactExport(["pt2"]), evaluation]
    fit(folder, model, *callbacks, ModelCheckpoint(folder, "kept"), data=data)
    assert evaluation.manifest is not None
    return evaluation.manifest.to_json()


class Silent(Tiny):
    """Logs nothing."""

    def evaluate(self, split: str, batch: Any) -> None:
        self(batch["image"] if isinstance(batch, dict) else batch[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(list(batch.values()) if isinstance(batch, dict) else batch, batch_idx)


def as_dicts(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {"image": torch.stack([x for x, _ in samples]), "label": torch.stack([y for _, y in samples])}


def test_checkpoints_of_one_name_in_two_folders_have_an_fp32_each(tmp_path: Path) -> None:
    class Scaling(Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 1 and not trainer.sanity_checking:
                pl_module.net[5].weight.data.mul_(3)

    class Scored(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("early", -float(self.trainer.global_step))
            self.log("late", float(self.trainer.global_step))

    names, evaluation = ("early", "late"), Int8Evaluation(splits=["validate"], latency=None)
    kept = [ModelCheckpoint(tmp_path / name, "best", monitor=name, mode="max") for name in names]
    made = [StaticQuantization(name, checkpoint=f"best:{name}") for name in names]
    same = DynamicQuantization("same", checkpoint="best:late")
    callbacks = [Scaling(), *kept, *made, same, ArtifactExport(["pt2"]), evaluation]
    fit(tmp_path, Scored(), *callbacks, max_epochs=2)
    assert evaluation.manifest is not None
    found = {entry["candidate"]: entry for entry in evaluation.manifest.to_json()["artifacts"] if entry["fp32"]}
    assert found.keys() == {*names, "same"}
    for name in names:
        model = Tiny()
        model.load_state_dict(torch.load(tmp_path / name / "best.ckpt", weights_only=True)["state_dict"])
        fp32 = recomputed(model.eval(), Images().val_dataloader())
        assert found[name]["fp32"]["metrics"]["val/loss"] == pytest.approx(fp32[0], rel=1e-5)
        assert found[name]["sqnr_db"] > 20
    assert found["same"]["fp32"] == found["late"]["fp32"]


class Dicts(Images):
    def train_dataloader(self) -> Any:
        return DataLoader(images(16), 8, collate_fn=as_dicts)

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.parametrize(("data", "label"), [(Images, 1), (Dicts, "label")], ids=["index", "key"])
def test_given_metrics_judge_a_module_that_logs_nothing(data: type[Images], label: int | str, tmp_path: Path) -> None:
    metrics = {"accuracy": MulticlassAccuracy(CLASSES, average="micro")}
    made = quantized(tmp_path, Silent(), data(), metrics=metrics, label=label)
    (entry,) = made["artifacts"]
    assert entry["metrics"].keys() == {"validate/accuracy", "test/accuracy"}
    assert made["budget"]["metric"] == "validate/accuracy"
    module = lq_plugin.load(tmp_path / "quantized" / entry["path"])
    pairs = [tuple(batch.values()) if isinstance(batch, dict) else batch for batch in data().val_dataloader()]
    assert entry["metrics"]["validate/accuracy"] == pytest.approx(recomputed(module, pairs)[1])
    assert metrics["accuracy"].update_count == 0


@dataclass
class Scored:
    logits: Tensor
    embedding: Tensor | None = None


class Scoring(Tiny):
    """Its forward returns an object that its own steps know, as those of Hugging Face's models do."""

    def forward(self, x: Tensor) -> Any:
        return Scored(self.net(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]).logits, batch[1])

    def evaluate(self, split: str, batch: Any) -> None:
        scored = self(batch[0])
        assert type(scored) is Scored
        self.log(f"{split}/loss", F.cross_entropy(scored.logits, batch[1]))


def test_an_output_has_its_class_in_the_loop_and_its_fields_elsewhere(tmp_path: Path) -> None:
    evaluation = Int8Evaluation(latency=None)
    dynamic = DynamicQuantization()
    fit(tmp_path, Scoring(), StaticQuantization(), dynamic, ArtifactExport((*FORMATS, "torch")), evaluation)
    assert evaluation.manifest is not None
    made = [entry for entry in evaluation.manifest.artifacts if entry.status != "unsupported"]
    assert [entry.error for entry in made] == [None] * 6
    assert all(entry.sqnr_db is not None and entry.sqnr_db > 20 for entry in made)
    loaded = lq_plugin.load(tmp_path / "quantized" / "static" / "onnx")
    scored = loaded(images(8).tensors[0])
    assert scored.logits.shape == scored["logits"].shape == (8, CLASSES)
    assert scored.embedding is None


def test_a_label_that_no_batch_has_is_named_and_training_and_artifacts_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = {"accuracy": MulticlassAccuracy(CLASSES)}
    made = quantized(tmp_path, Silent(), Dicts(), metrics=metrics, label="labels")
    (entry,) = made["artifacts"]
    reason = r"ConfigError: label: 'labels' is not in a batch \(it has \['image', 'label'\]\)"
    assert re.match(reason, entry["error"])
    assert (entry["status"], entry["metrics"], made["selected"]) == ("not_evaluated", {}, None)
    assert len([record for record in caplog.records if re.search(reason, record.getMessage())]) == 1
    assert torch.load(tmp_path / "kept.ckpt", weights_only=True)["global_step"] == 2
    assert lq_plugin.load(tmp_path / "quantized" / "static" / "pt2")


def test_a_module_may_use_its_loggers_experiment(tmp_path: Path) -> None:
    class Drawing(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.logger.experiment.log_metrics({"drawn": 1.0}, step=batch_idx)

    evaluation = Int8Evaluation(latency=None)
    logger = CSVLogger(tmp_path, "", "")
    fit(tmp_path, Drawing(), StaticQuantization(), ArtifactExport(["pt2"]), evaluation, logger=logger)
    assert evaluation.manifest is not None
    assert [entry.error for entry in evaluation.manifest.artifacts] == [None]


class Bright(Images):
    """Changes batches on their way to the module."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 3 + 1, batch[1]


def test_the_datamodules_transfer_hooks_run(tmp_path: Path) -> None:
    made = quantized(tmp_path, Tiny(), Bright())
    (entry,) = made["artifacts"]
    module = lq_plugin.load(tmp_path / "quantized" / entry["path"])
    seen = [(x * 3 + 1, y) for x, y in Bright().val_dataloader()]
    assert (entry["metrics"]["val/loss"], entry["metrics"]["val/acc"]) == pytest.approx(recomputed(module, seen))


class WithoutTest(Images):
    test_dataloader = L.LightningDataModule.test_dataloader


@pytest.mark.parametrize(
    ("data", "splits", "expected"),
    [
        (WithoutTest, ("validate", "test"), {"val"}),
        (Images, ("test",), {"test"}),
        (Images, ("validate",), {"val"}),
        (Images, ("validate", "test"), {"val", "test"}),
    ],
)
def test_splits_are_those_asked_for_that_exist(
    data: type[Images], splits: tuple[str, ...], expected: set[str], tmp_path: Path
) -> None:
    (entry,) = quantized(tmp_path, Tiny(), data(), splits=splits)["artifacts"]
    assert (entry["status"] == "not_evaluated") == ("val" not in expected)  # for the test split judges nothing
    assert {name.split("/")[0] for name in entry["metrics"]} == expected
    assert entry["sqnr_db"] is not None


@pytest.mark.parametrize(
    ("budget", "status"),
    [
        (Budget("val/loss", 0.0, relative=False), "over_budget"),
        (Budget("val/loss", 10.0, mode="min"), "ok"),
        (Budget("val/acc", 1.0, relative=False, mode="max"), "ok"),
    ],
)
def test_the_budget_judges(budget: Budget, status: str, tmp_path: Path) -> None:
    made = quantized(tmp_path, Tiny(), budget=budget)
    assert [entry["status"] for entry in made["artifacts"]] == [status]
    assert made["budget"]["metric"] == budget.metric


def test_a_budget_on_a_metric_that_is_not_logged_is_named_and_the_figures_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = quantized(tmp_path, Tiny(), budget=Budget("val/los"))
    (entry,) = made["artifacts"]
    reason = r"ConfigError: budget\.metric: 'val/los' is unknown. Did you mean 'val/loss'"
    assert re.match(reason, entry["error"])
    assert (entry["status"], made["selected"]) == ("not_evaluated", None)
    assert len([record for record in caplog.records if re.search(reason, record.getMessage())]) == 1
    module = lq_plugin.load(tmp_path / "quantized" / entry["path"])
    assert entry["metrics"]["val/loss"] == pytest.approx(recomputed(module, Images().val_dataloader())[0], rel=1e-5)
    assert torch.load(tmp_path / "kept.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("budget", [Budget("test/loss"), Budget(max_drop=0.5)])
def test_a_budget_without_validation_is_refused_when_it_is_given(budget: Budget) -> None:
    with pytest.raises(ConfigError, match=r"budget: it applies to validation metrics, .* Add 'validate' to splits"):
        Int8Evaluation(splits=["test"], budget=budget)


def test_latency_is_measured_and_what_is_within_the_budget_is_selected(tmp_path: Path) -> None:
    evaluation = Int8Evaluation(latency=Latency(rounds=2, seconds=0.02), budget=Budget("val/loss", 10.0, mode="min"))
    fit(tmp_path, Tiny(), StaticQuantization(), ArtifactExport(["openvino"], placement="runtime"), evaluation)
    made = json.loads((tmp_path / "quantized" / "manifest.json").read_text())
    assert made["fp32"]["latency_ms"].keys() == {"torch", "openvino"}
    (entry,) = made["artifacts"]
    assert (entry["status"], entry["error"]) == ("ok", None)
    latency = entry["latency_ms"]
    assert latency.keys() >= {"median", "p90", "batch_size", "threads", "rounds"}
    assert 0 < latency["median"] <= latency["p90"]
    assert (latency["batch_size"], latency["rounds"]) == (1, 2)
    fp32 = made["fp32"]["latency_ms"]
    faster = latency["median"] <= min(fp32.values())
    assert (made["selected"], made["unselected"] is None) == ("static/openvino" if faster else None, faster)
    assert entry["speedup"]["vs_torch_fp32"] == pytest.approx(fp32["torch"] / latency["median"])
    assert entry["speedup"]["vs_best_fp32"] == pytest.approx(min(fp32.values()) / latency["median"])
    assert entry["reload_max_difference"] < 1e-5


def test_a_fit_without_these_callbacks_can_follow(run: Run) -> None:
    again = trainer(run.folder / "again", enable_checkpointing=False)
    run.model.train()
    again.fit(run.model, datamodule=run.data)
    assert again.global_step == 3
    assert isinstance(run.model.net, nn.Sequential)
