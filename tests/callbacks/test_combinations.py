"""The callbacks in every order, in company, copied, in both Lightning namespaces and with every kind of batch."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from tiny import Images, Steps, Tiny, fit, images, network, trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import lq_plugin
from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, Latency, StaticQuantization
from lq_plugin.report import table
from lq_plugin.report.manifest import Manifest


def callbacks(formats: tuple[str, ...] = ("pt2",), **options: Any) -> list[Callback]:
    return [StaticQuantization(**options), ArtifactExport(formats), Int8Evaluation(latency=None)]


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "quantized" / "manifest.json").read_text()))


def entry(folder: Path) -> dict[str, Any]:
    """The one artifact of a manifest, which must have been made and evaluated."""
    (made,) = manifest(folder)["artifacts"]
    assert (made["status"], made["error"]) == ("ok", None)
    assert lq_plugin.load(folder / "quantized" / made["path"])
    return dict(made)


ORDERS = {"turned": (1, 2, 3, 4, 0), "backwards": (4, 3, 2, 1, 0)}


def ordered(folder: Path, order: tuple[int, ...] = (0, 1, 2, 3, 4)) -> dict[str, Any]:
    """The manifest of five callbacks in an order, with candidates and their artifacts in that of their names."""
    L.seed_everything(3, verbose=False)
    quantizations = [StaticQuantization(), StaticQuantization("half", skip=["net.5"]), DynamicQuantization()]
    used = [*quantizations, ArtifactExport(["pt2"]), Int8Evaluation(latency=None)]
    fit(folder, Tiny(), ModelCheckpoint(folder, "kept"), *(used[index] for index in order))
    made = manifest(folder)
    return made | {"artifacts": sorted(made["artifacts"], key=lambda entry: entry["path"] or "")}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ordered(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_gives_the_same_artifacts_and_metrics(order: str, usual: dict[str, Any], tmp_path: Path) -> None:
    other = ordered(tmp_path, ORDERS[order])
    assert [entry["status"] for entry in usual["artifacts"]] == ["unsupported", "ok", "ok", "ok"]
    for part in ("artifacts", "fp32", "calibration", "budget", "selected"):
        wanted, got = usual[part], other[part]
        if part == "artifacts":  # a zip archive holds an identifier of its own
            wanted, got = ([e | {"sha256": sorted(e["sha256"])} for e in each] for each in (wanted, got))
        assert wanted == got


def test_two_quantizations_stand_together(tmp_path: Path) -> None:
    one, two = StaticQuantization("one", observer="minmax"), StaticQuantization("two", skip=["net.0"])
    kept = ModelCheckpoint(tmp_path, "kept")
    fit(tmp_path, Tiny(), one, two, ArtifactExport(["pt2"]), Int8Evaluation(latency=None), kept)
    made = {e["candidate"]: e for e in manifest(tmp_path)["artifacts"]}
    assert [e["path"] for e in made.values()] == ["one/pt2", "two/pt2"]
    assert {op["op"] for op in made["one"]["quantized_ops"]} == {"conv2d", "linear"}
    assert {op["op"] for op in made["two"]["quantized_ops"]} == {"linear"}
    assert (
        made["one"]["metrics"].keys() == made["two"]["metrics"].keys() == manifest(tmp_path)["fp32"]["metrics"].keys()
    )
    saved = torch.load(tmp_path / "kept.ckpt", weights_only=True)["callbacks"]
    assert {"StaticQuantization[one]", "StaticQuantization[two]"} < saved.keys()
    assert manifest(tmp_path)["calibration"]["one"]["observer"] == "minmax"


def test_different_targets_are_each_compared_with_their_own_fp32(tmp_path: Path) -> None:
    whole, head = StaticQuantization("whole"), DynamicQuantization("head", target="net.5")
    evaluation = Int8Evaluation(latency=Latency(rounds=1, seconds=0.01))
    export = ArtifactExport(["onnx"], placement="runtime")
    fit(tmp_path, Tiny(), whole, head, export, evaluation, enable_checkpointing=False)
    model = Tiny()
    made = {f"{e['candidate']}/{e['format']}": e for e in manifest(tmp_path)["artifacts"]}
    assert set(made) == {"whole/onnx", "head/onnx", "head/torch"}
    for name, target in (("whole/onnx", model), ("head/onnx", model.net[5]), ("head/torch", model.net[5])):
        fp32 = made[name]["fp32"]
        assert fp32["size_bytes"] == sum(tensor.nbytes for tensor in target.state_dict().values())
        speedup = fp32["latency_ms"]["torch"] / made[name]["latency_ms"]["median"]
        assert made[name]["speedup"]["vs_torch_fp32"] == speedup
        assert fp32["errors"] == {}
    assert manifest(tmp_path)["fp32"] == made["whole/onnx"]["fp32"]
    printed = io.StringIO()
    table.show(Manifest.from_json(manifest(tmp_path)), tmp_path, Console(file=printed, width=120))
    assert printed.getvalue().count("FP32 torch") == 2


class Late:
    """Builds its network when a fit begins, anew whenever it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def build(self, stage: str = "") -> None:
        self.net = network()


class BuiltInSetup(Late, Tiny):
    setup = Late.build


class BuiltInConfigureModel(Late, Tiny):
    configure_model = Late.build


@pytest.mark.parametrize("model", [BuiltInSetup, BuiltInConfigureModel])
def test_a_network_that_is_built_when_fit_begins_is_found_and_kept(model: type[Any], tmp_path: Path) -> None:
    quantizations = [made(target="net", skip=["0"]) for made in (StaticQuantization, DynamicQuantization)]
    evaluation = Int8Evaluation(["validate"], latency=None)
    made = fit(tmp_path, model(), *quantizations, ArtifactExport(["pt2"]), evaluation, enable_checkpointing=False)
    logged = {name: float(value) for name, value in made.callback_metrics.items() if name.startswith("val")}
    assert manifest(tmp_path)["fp32"]["metrics"] == pytest.approx(logged)
    paths = {entry["path"] for entry in manifest(tmp_path)["artifacts"] if entry["metrics"]}
    assert paths == {"static/pt2", "dynamic/torch"}


def test_artifacts_are_exported_without_an_evaluation(tmp_path: Path) -> None:
    fit(tmp_path, Tiny(), StaticQuantization(), ArtifactExport(["pt2"]), enable_checkpointing=False)
    (made,) = manifest(tmp_path)["artifacts"]
    assert (made["status"], made["metrics"], made["latency_ms"]) == ("not_evaluated", {}, None)


def test_copies_of_the_callbacks_serve_two_fits_of_different_models(tmp_path: Path) -> None:
    used = copy.deepcopy(callbacks())
    for name in ("a", "b"):
        fit(tmp_path / name, Tiny(), *used, enable_checkpointing=False)
        assert entry(tmp_path / name)["metrics"]


def test_the_other_namespace_of_lightning_works(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    class Other(Steps, pl.LightningModule):
        pass

    class OtherImages(pl.LightningDataModule):
        train_dataloader, val_dataloader = Images.train_dataloader, Images.val_dataloader
        samples, batch_size, val_samples = 24, 8, 16

    made = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks(),
    )
    made.fit(Other(), datamodule=OtherImages())
    assert entry(tmp_path)["metrics"].keys() == {"val/loss", "val/acc"}


@dataclass
class Record:
    x: Tensor
    y: Tensor


class Batched(Tiny):
    """Takes its batches apart as ``given`` says: what the network gets, and the labels."""

    def __init__(self, given: Callable[[Any], Any], labels: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.given, self.labels = given, labels

    def forward(self, x: Any) -> Tensor:
        return self.net(x["x"] if isinstance(x, dict) else x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(self.given(batch)), self.labels(batch))

    def evaluate(self, split: str, batch: Any) -> None:
        self.log(f"{split}/loss", F.cross_entropy(self(self.given(batch)), self.labels(batch)))


def collated(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


BATCHES: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Any], Callable[[Any], Tensor]]] = {
    "dict": (lambda x, y: {"x": x, "y": y}, lambda batch: batch["x"], lambda batch: batch["y"]),
    "dict given": (lambda x, y: {"x": x, "y": y}, lambda batch: batch, lambda batch: batch["y"]),
    "tuple of dicts": (lambda x, y: ({"x": x}, {"y": y}), lambda batch: batch[0], lambda batch: batch[1]["y"]),
    "dataclass": (Record, lambda batch: batch.x, lambda batch: batch.y),
}


@pytest.mark.parametrize(("made", "given", "labels"), BATCHES.values(), ids=BATCHES)
def test_every_kind_of_batch_works(made: Any, given: Any, labels: Any, tmp_path: Path) -> None:
    def collate(samples: list[tuple[Tensor, Tensor]]) -> Any:
        return made(*collated(samples))

    class Data(Images):
        def train_dataloader(self) -> Any:
            return DataLoader(images(16), 8, collate_fn=collate)

        val_dataloader = test_dataloader = train_dataloader

    fit(tmp_path, Batched(given, labels), *callbacks(), data=Data(), enable_checkpointing=False)
    assert entry(tmp_path)["metrics"].keys() == {"val/loss", "test/loss"}
    assert manifest(tmp_path)["calibration"]["static"]["samples"] == 16


def test_several_validation_loaders_are_observed_and_evaluated(tmp_path: Path) -> None:
    class Several(Images):
        def val_dataloader(self) -> Any:
            return [DataLoader(images(16, 2), 8), DataLoader(images(24, 4), 8)]

    class Model(Tiny):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    fit(tmp_path, Model(), *callbacks(), data=Several(), enable_checkpointing=False)
    expected = {"val/loss/dataloader_idx_0", "val/loss/dataloader_idx_1"}
    assert {name for name in entry(tmp_path)["metrics"] if name.startswith("val/")} == expected
    assert manifest(tmp_path)["calibration"]["static"]["samples"] == 40


def test_loaders_given_to_fit_work_without_a_datamodule(tmp_path: Path) -> None:
    data = Images()
    made = trainer(tmp_path, *callbacks(), enable_checkpointing=False)
    made.fit(Tiny(), data.train_dataloader(), data.val_dataloader())
    assert entry(tmp_path)["metrics"].keys() == {"val/loss", "val/acc"}


def test_loaders_of_the_module_itself_work(tmp_path: Path) -> None:
    class Own(Tiny):
        def train_dataloader(self) -> Any:
            return Images().train_dataloader()

        def val_dataloader(self) -> Any:
            return Images().val_dataloader()

        def test_dataloader(self) -> Any:
            return Images().test_dataloader()

    trainer(tmp_path, *callbacks(), enable_checkpointing=False).fit(Own())
    assert entry(tmp_path)["metrics"].keys() == {"val/loss", "val/acc", "test/loss", "test/acc"}


def test_a_network_called_twice_in_one_forward_is_observed_at_both_calls(tmp_path: Path) -> None:
    class Twice(Tiny):
        def evaluate(self, split: str, batch: Any) -> None:
            both = self.net(batch[0]) + self.net(batch[0].flip(-1))
            self.log(f"{split}/loss", F.cross_entropy(both, batch[1]))

    fit(tmp_path, Twice(), *callbacks(target="net"), enable_checkpointing=False)
    assert entry(tmp_path)["metrics"]
    assert manifest(tmp_path)["calibration"]["static"]["batches"] == 4


def test_fast_dev_run_goes_all_the_way(tmp_path: Path) -> None:
    fit(tmp_path, Tiny(), *callbacks(), fast_dev_run=True)
    assert entry(tmp_path)["metrics"].keys() == {"val/loss", "val/acc", "test/loss", "test/acc"}
    assert manifest(tmp_path)["calibration"]["static"]["batches"] == 1


def test_a_compiled_module_works(tmp_path: Path) -> None:
    class Compiled(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.net.compile(backend="eager")

    fit(tmp_path, Compiled(), *callbacks(), enable_checkpointing=False)
    assert entry(tmp_path)["metrics"]


SCRIPT = """
import sys
from pathlib import Path

import lightning as L

sys.path.insert(0, {tests!r})
from tiny import Images, Tiny
from torchmetrics.classification import MulticlassAccuracy

import torch
from lq_plugin import ArtifactExport, Int8Evaluation, MinMaxObserver, StaticQuantization

class Failing(MinMaxObserver):
    def update(self, statistic, values):
        if torch.distributed.get_rank() == 1:
            raise MemoryError("no room for it")
        return super().update(statistic, values)

if __name__ == "__main__":
    L.seed_everything(1, verbose=False)
    evaluation = Int8Evaluation(latency=None, metrics={{"given": MulticlassAccuracy(3)}})
    trainer = L.Trainer(
        default_root_dir={folder!r}, accelerator="cpu", devices=2, strategy={strategy!r}, max_epochs=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[
            StaticQuantization(observer="minmax"), StaticQuantization("counted"),
            StaticQuantization("failing", observer=Failing()), ArtifactExport(["pt2"]), evaluation,
        ],
    )
    trainer.fit(Tiny(), datamodule=Images(val_samples={samples}))
    if trainer.global_rank == 0:
        Path({folder!r}, "checkpoint").write_text(trainer.checkpoint_callback.best_model_path)
"""


def test_two_processes_finish_with_one_manifest_and_merged_statistics(tmp_path: Path) -> None:
    """The sampler repeats one sample, as a batch of its own."""
    script = tmp_path / "script.py"
    here = str(Path(__file__).parents[1])
    script.write_text(SCRIPT.format(tests=here, folder=str(tmp_path), strategy="ddp_spawn", samples=33))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("manifest.json")] == [
        "quantized/manifest.json"
    ]
    provenance = manifest(tmp_path)["calibration"]["static"]
    assert (provenance["samples"], provenance["batches"], provenance["extra_pass"]) == (33, 5, False)
    saved = torch.load((tmp_path / "checkpoint").read_text(), weights_only=True)
    model = Tiny()
    model.load_state_dict(saved["state_dict"])
    model.eval()
    loader = Images(val_samples=33).val_dataloader()
    for name, observer in (("static", "minmax"), ("counted", "histogram")):
        expected = lq_plugin.calibrate(model, [x for x, _ in loader], lq_plugin.Scheme(observer=observer))
        statistics = saved["callbacks"][f"StaticQuantization[{name}]"]["calibration"]["statistics"]
        assert statistics.keys() == expected.statistics.keys()
        for value, statistic in expected.statistics.items():
            assert {part: tensor.tolist() for part, tensor in statistics[value].items()} == {
                part: tensor.tolist() for part, tensor in statistic.items()
            }
    correct = torch.cat([model(x).argmax(1) == y for x, y in loader]).float().mean().item()
    assert manifest(tmp_path)["fp32"]["metrics"]["val/acc"] == pytest.approx(correct)
    made = {entry["candidate"]: entry for entry in manifest(tmp_path)["artifacts"]}
    assert made["static"]["metrics"].keys() >= {"val/acc", "validate/given", "test/given"}
    assert {name: each["status"] for name, each in made.items()} == {
        "static": "ok",
        "counted": "ok",
        "failing": "failed",
    }
    assert "observing failed in process 1 of 2: calibration: no room for it" in made["failing"]["error"]
    assert "StaticQuantization[failing]" not in saved["callbacks"]
