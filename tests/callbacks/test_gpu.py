"""Training on a GPU, artifacts for the CPU; skipped where there is none.

``LQ_ACCELERATOR=gpu`` lets all other tests of this folder train on a GPU too.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import commands
import lightning as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import Callback
from tiny import CLASSES, SIDE, Images, Tiny, images
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lq_plugin
from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, Latency, Scheme, StaticQuantization, load
from lq_plugin.observers import OBSERVERS
from lq_plugin.report.manifest import Manifest, read

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FOLDER = Path(tiny.__file__).parent


class Recurrent(Tiny):
    """Reads an image row by row, on cuDNN."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.net = nn.LSTM(SIDE, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.rows(x.squeeze(1))[0][:, -1])


class Attending(Tiny):
    """Attends to the rows of an image, in fused kernels."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(SIDE, 2, 16, batch_first=True)
        self.rows, self.net = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(SIDE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.rows(x.squeeze(1)).mean(1))


class Lazy(Tiny):
    """Makes a table in its first call, where its input is, and keeps it as no buffer."""

    table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(0.5, 1.5, SIDE, device=x.device)
        return self.net(x * self.table)


class OnGpu(Images):
    """Holds all data on the GPU."""

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*(tensor.cuda() for tensor in images(self.val_samples, 2).tensors)), 8)


class Pinned(Images):
    """Loads in another process, into pinned memory."""

    def val_dataloader(self) -> Any:
        return DataLoader(images(self.val_samples, 2), 8, num_workers=1, pin_memory=True, persistent_workers=True)


def trained(folder: Path, *callbacks: Callback, kind: type[Tiny] = Tiny, data: Any = None, **options: Any) -> Any:
    """Return the Trainer and the model."""
    L.seed_everything(7, verbose=False)
    model, options = kind(), {"max_epochs": 2, "deterministic": True} | options
    return tiny.fit(folder, model, *callbacks, data=data, accelerator="gpu", devices=1, **options), model


def manifest_in(folder: Path) -> tuple[Manifest, Path]:
    (file,) = folder.rglob("manifest.json")
    return read(file), file.parent


def assert_artifacts_compute_as(model: nn.Module, folder: Path, factory: Any = Tiny) -> None:
    manifest, root = manifest_in(folder)
    image = torch.randn(4, 1, SIDE, SIDE)
    wanted = model.cpu().eval()(image)
    for entry in manifest.artifacts:
        assert entry.status == "ok", (entry.label, entry.error)
        assert entry.sqnr_db is not None
        assert entry.sqnr_db > 20
        assert entry.path is not None
        given = load(root / entry.path, factory=factory if entry.format == "torch" else None)(image)
        assert (given - wanted).norm() < 0.1 * wanted.norm()
    assert not manifest.calibration["static"]["extra_pass"]


def callbacks() -> tuple[Callback, ...]:
    return (
        StaticQuantization(algorithms=()),
        DynamicQuantization(algorithms=()),
        ArtifactExport(["onnx"], placement="runtime"),
        Int8Evaluation(latency=None),
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_is_the_same_and_the_artifacts_run_on_the_cpu(precision: str, tmp_path: Path) -> None:
    _, alone = trained(tmp_path / "alone", precision=precision)
    _, model = trained(tmp_path / "with", *callbacks(), precision=precision)
    states = [each.cpu().state_dict() for each in (alone, model)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert_artifacts_compute_as(model, tmp_path / "with")


KINDS = [(Recurrent, Images), (Attending, Images), (Lazy, Images), (Tiny, OnGpu), (Tiny, Pinned)]


@pytest.mark.parametrize(("kind", "data"), KINDS, ids=lambda value: value.__name__)
def test_what_users_train_on_gpus_is_calibrated_there_and_evaluated_on_the_cpu(
    kind: type[Tiny], data: type[Images], tmp_path: Path
) -> None:
    evaluation = Int8Evaluation(latency=Latency(rounds=1, seconds=0.01))
    exporting = ArtifactExport(["onnx"], placement="runtime")
    ours = StaticQuantization(), DynamicQuantization(), exporting, evaluation
    trainer, model = trained(tmp_path, *ours, kind=kind, data=data())
    assert trainer.test(model, data(), verbose=False)[0]["test/loss"] > 0  # all of it goes back to the GPU
    assert_artifacts_compute_as(model if kind is not Lazy else on_cpu(model), tmp_path, kind)
    assert evaluation.manifest is not None
    assert all(entry.median is not None for entry in evaluation.manifest.artifacts)


def on_cpu(model: Lazy) -> Lazy:
    assert model.table is not None
    model.table = model.table.cpu()
    return model


class Wide(Tiny):
    """Has 4 MiB of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 1 << 14), nn.ReLU(), nn.Linear(1 << 14, CLASSES))


class Allocated(Callback):
    """Notes how many bytes there are on the GPU when a validation starts."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def on_validation_start(self, *_: Any) -> None:
        self.bytes.append(torch.cuda.memory_allocated())


def test_no_gpu_memory_is_kept_from_a_validation_or_a_fit(tmp_path: Path) -> None:
    def kept(name: str, *ours: Callback) -> list[int]:
        noted = Allocated()
        gc.collect()
        gc.disable()  # a training may go on for long before garbage is collected
        try:
            trained(tmp_path / name, noted, *ours, kind=Wide, max_epochs=4)
        finally:
            gc.enable()
        gc.collect()
        return [*noted.bytes, torch.cuda.memory_allocated()]

    kept("first")  # what libraries keep from their first call
    with_ours, alone = kept("with", *callbacks()), kept("alone")
    assert all(abs(one - other) < 2**20 for one, other in zip(with_ours, alone, strict=True))


@pytest.mark.parametrize("observer", [kind() for kind in OBSERVERS.values()], ids=str)
def test_an_observer_sees_the_same_on_a_gpu(observer: Any) -> None:
    powers = torch.exp2(torch.arange(-110.0, 120.0)).unsqueeze(1)
    beside = torch.cat([powers, powers.nextafter(powers * 2), powers.nextafter(powers * 0)], 1)
    awkward = [torch.tensor([torch.nan, torch.inf, -1.0, 2.0]), torch.full((3,), torch.nan), torch.zeros(2)]
    batches = [*beside, torch.randn(3, 64, 64).transpose(0, 2), torch.randn(1000).half(), *awkward]
    seen: dict[str, dict[str, Tensor]] = {"cpu": {}, "cuda": {}}
    for batch in batches:
        for device in seen:
            alone, seen[device] = observer.update({}, batch.to(device)), observer.update(seen[device], batch.to(device))
            assert alone.keys() == seen[device].keys()
            assert all(tensor.device.type == "cpu" for tensor in alone.values())
        for name, tensor in seen["cpu"].items():
            assert torch.equal(tensor, seen["cuda"][name]), (name, batch)
    assert observer.range(seen["cpu"]) == observer.range(seen["cuda"])


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_a_module_on_a_gpu_is_quantized_by_function(method: str, tmp_path: Path) -> None:
    batches, model = [images(32).tensors[0].cuda()], Lazy().eval().cuda()
    wanted = model(batches[0])
    candidate = lq_plugin.quantize(model, batches, method)
    formats = {"static": "pt2", "dynamic": "torch"}
    (artifact,) = lq_plugin.export(candidate, tmp_path, [formats[method]]).values()
    given = load(artifact.path, factory=Tiny)(
        batches[0].cpu() * on_cpu(model).table if method == "dynamic" else batches[0].cpu()
    )
    assert (given - wanted.cpu()).norm() < 0.1 * wanted.norm()
    assert next(model.parameters()).is_cuda
    if method == "static":
        assert lq_plugin.sensitivity(candidate, batches)
        on_gpu = lq_plugin.calibrate(model, batches, Scheme(algorithms=()))
        at_home = lq_plugin.calibrate(on_cpu(model.cpu()), [batches[0].cpu()], Scheme(algorithms=()))
        assert on_gpu.provenance == at_home.provenance
    scores = lq_plugin.evaluate(model.cuda(), DataLoader(images(16), 8), artifact)
    assert scores["val/loss"] > 0


DDP = """
import sys
sys.path.append({folder!r})
import torch
from tiny import Tiny, fit
from lq_plugin import ArtifactExport, Int8Evaluation, StaticQuantization

if __name__ == "__main__":
    evaluation = Int8Evaluation(latency=None)
    ours = StaticQuantization(algorithms=()), ArtifactExport(["onnx"], placement="runtime"), evaluation
    fit(".", Tiny(), *ours, accelerator="gpu", strategy="ddp", devices=1)
    (entry,) = evaluation.manifest.artifacts
    print(torch.distributed.get_backend(), entry.status, evaluation.manifest.calibration["static"]["samples"])
    torch.distributed.destroy_process_group()
"""


def test_ddp_on_nccl(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(DDP.format(folder=str(FOLDER)))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "nccl ok 16"


def test_a_checkpoint_of_a_gpu_is_quantized_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"import sys\nsys.path.append({str(FOLDER)!r})\nfrom tiny import Images, Tiny\n")
    what = ("model._target_=mine.Tiny", "data._target_=mine.Images", "export=pt2", "callbacks.evaluation.latency=null")
    quiet = ("callbacks=checkpoint", "callbacks.checkpoint.monitor=val/loss", "trainer.max_epochs=1", "logger=none")
    done = commands.run("lq-train", *what, *quiet, "trainer=gpu", "hydra.run.dir=trained", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = (tmp_path / "trained").rglob("*.ckpt")
    checkpoint.rename(tmp_path / "given.ckpt")  # Hydra would read the "=" in its name
    options = (*what, *quiet, "trainer=cpu", "ckpt_path=given.ckpt", "hydra.run.dir=again")
    without = {"CUDA_VISIBLE_DEVICES": ""}
    done = commands.run("lq-quantize", *options, cwd=tmp_path, environment=without)
    assert done.returncode == 0, done.stderr
    again, _ = manifest_in(tmp_path / "again")
    first, _ = manifest_in(tmp_path / "trained")
    assert [entry.sha256 for entry in again.artifacts] == [entry.sha256 for entry in first.artifacts]
    assert not again.calibration["static"]["extra_pass"]
