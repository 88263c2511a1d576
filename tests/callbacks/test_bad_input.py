"""What cannot work is a named error, before training wherever it can be known then, and never costs the training."""

from __future__ import annotations

import json
import re
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
from lq_plugin import (
    ArtifactExport,
    Budget,
    DynamicQuantization,
    Int8Evaluation,
    Latency,
    PercentileObserver,
    Scheme,
    StaticQuantization,
)
from lq_plugin.errors import CaptureError, ConfigError, LqError


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: StaticQuantization(observer="minmx"), "observer: 'minmx' is unknown. Did you mean 'minmax'"),
        (lambda: Scheme("statik"), "method: 'statik' is unknown. Did you mean 'static'"),
        (lambda: Scheme(activation_dtype="int7"), "activation_dtype: 'int7' is unknown. Did you mean .*'int8'"),
        (lambda: Scheme(weight_granularity="channel"), "weight_granularity: 'channel' is unknown. .*'per_channel'"),
        (lambda: StaticQuantization(skip="head"), r"skip: 'head' is not a list of patterns. Write for example"),
        (lambda: StaticQuantization(only=[1]), r"only: .*1.* is not a list of patterns"),
        (lambda: StaticQuantization(samples=0), "samples: 0 is too small. Allowed: 1 or more"),
        (lambda: StaticQuantization(checkpoint="bset"), "checkpoint: 'bset' is unknown. Did you mean 'best'"),
        (lambda: StaticQuantization(name="a/b"), "name: 'a/b' cannot name a folder"),
        (lambda: StaticQuantization(name=".."), r"name: '\.\.' cannot name a folder"),
        (lambda: StaticQuantization(name=""), "name: '' cannot name a folder"),
        (lambda: StaticQuantization(name="CON"), "name: 'CON' cannot name a folder: Windows reserves it"),
        (lambda: StaticQuantization(name="a:b"), "name: 'a:b' cannot name a folder: it contains :"),
        (lambda: StaticQuantization(name="x" * 256), "cannot name a folder: it has 256 characters"),
        (lambda: DynamicQuantization(name="manifest.json"), "lq_plugin writes a file of this name"),
        (lambda: PercentileObserver(20.0), "percentile: 20.0 is out of range. Allowed: above 50, up to 100"),
        (lambda: ArtifactExport(["onxn"]), "formats: 'onxn' is unknown. Did you mean 'onnx'"),
        (lambda: ArtifactExport([]), r"formats: \[\] is not a list of formats. Allowed: 'onnx', 'openvino', 'pt2'"),
        (lambda: ArtifactExport("onnx"), "formats: 'onnx' is not a list of formats"),
        (lambda: Int8Evaluation(splits=["valid"]), "splits: 'valid' is unknown. Did you mean 'validate'"),
        (lambda: Int8Evaluation(splits="tset"), "splits: 'tset' is unknown. Did you mean 'test'"),
        (lambda: Latency(batch_size=0), "batch_size: 0 is too small"),
        (lambda: Latency(threads=0), "threads: 0 is too small"),
        (lambda: Latency(seconds=0), "seconds: 0 is too small"),
        (lambda: Budget(mode="mx"), "mode: 'mx' is unknown. Did you mean 'max'"),
    ],
)
def test_an_option_that_cannot_work_is_refused_when_it_is_given(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build()


class Watching(Callback):
    """Counts the training batches."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1


class WithoutValidation(Images):
    val_dataloader = L.LightningDataModule.val_dataloader


class Empty(Images):
    def val_dataloader(self) -> Any:
        return []


class Around(Tiny):
    """Its validation goes around its own forward."""

    def evaluate(self, split: str, batch: Any) -> None:
        self.log(f"{split}/mean", self.net(batch[0]).mean())


class Branching(Tiny):
    """Cannot be captured: what it does depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e6:
            return self.net(x * 2)
        return self.net(x)


BRANCH = next(
    number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "if x.sum() > 1e6:" in line
)


class Subclass(StaticQuantization):
    """Another class, with a state key of its own, but the same default name."""


class Elementwise(Tiny):
    """Has nothing that can be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Flatten()
        self.scale = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) * self.scale)[:, :3]


BEFORE_TRAINING: dict[str, tuple[Callable[[], list[Callback]], type[Tiny], type[Images], type[LqError], str]] = {
    "operator": (
        lambda: [StaticQuantization(skip=["op:conv2"])],
        Tiny,
        Images,
        ConfigError,
        "skip: 'op:conv2' is unknown. Did you mean 'op:conv",
    ),
    "absent operator": (
        lambda: [StaticQuantization(skip=["op:bmm"])],
        Tiny,
        Images,
        ConfigError,
        "skip: 'op:bmm' matches no operator of this model. It has: .*op:conv2d, op:linear",
    ),
    "module": (
        lambda: [StaticQuantization(only=["nett.0"])],
        Tiny,
        Images,
        ConfigError,
        r"only: 'nett\.0' is unknown. Did you mean 'net\.",
    ),
    "target": (
        lambda: [StaticQuantization(target="nett")],
        Tiny,
        Images,
        ConfigError,
        "target: 'nett' is unknown. Did you mean 'net'",
    ),
    "target not called": (
        lambda: [StaticQuantization()],
        Around,
        Images,
        ConfigError,
        r"target: the forward of 'Around' is never called in validation_step.* one of \['net'\]",
    ),
    "monitor": (
        lambda: [StaticQuantization(checkpoint="best:val/acc"), ModelCheckpoint(monitor="val/loss")],
        Tiny,
        Images,
        ConfigError,
        r"checkpoint: 'best:val/acc' names a metric that no ModelCheckpoint .* Monitored: \['val/loss'\]",
    ),
    "no validation": (
        lambda: [StaticQuantization()],
        Tiny,
        WithoutValidation,
        ConfigError,
        "StaticQuantization: calibration runs during validation, which is disabled. Define validation_step",
    ),
    "empty loader": (
        lambda: [StaticQuantization()],
        Tiny,
        Empty,
        ConfigError,
        "val_dataloaders: the validation loader is empty",
    ),
    "two of one name": (
        lambda: [StaticQuantization(), Subclass()],
        Tiny,
        Images,
        ConfigError,
        "name: 'static' is used by several callbacks. Give each its own",
    ),
    "two of one folder": (
        lambda: [StaticQuantization(name="Q"), DynamicQuantization(name="q")],
        Tiny,
        Images,
        ConfigError,
        "name: 'Q' and 'q', the same folder on some disks, are used by several callbacks. Give each its own",
    ),
    "evaluation alone": (
        lambda: [StaticQuantization(), Int8Evaluation()],
        Tiny,
        Images,
        ConfigError,
        r"Int8Evaluation: it evaluates artifacts on disk, but .* Add ArtifactExport\(\)",
    ),
    "export alone": (
        lambda: [ArtifactExport(["pt2"])],
        Tiny,
        Images,
        ConfigError,
        r"ArtifactExport: no callback of this Trainer makes a candidate. Add StaticQuantization\(\)",
    ),
    "capture": (
        lambda: [StaticQuantization()],
        Branching,
        Images,
        CaptureError,
        rf"test_bad_input\.py:{BRANCH}: if x\.sum\(\) > 1e6:",
    ),
    "dynamic dimension": (
        lambda: [StaticQuantization(dynamic_dims={"y": [1]})],
        Tiny,
        Images,
        ConfigError,
        "dynamic_dims: 'y' is unknown. .*Allowed: 'x'",
    ),
    "nothing to quantize": (
        lambda: [StaticQuantization()],
        Elementwise,
        Images,
        ConfigError,
        "target: nothing in it can be quantized. Quantizable: convolutions, linear layers",
    ),
}


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:Total length of `.*` across ranks is zero")
@pytest.mark.parametrize(("callbacks", "model", "data", "kind", "said"), BEFORE_TRAINING.values(), ids=BEFORE_TRAINING)
def test_what_the_trainer_shows_is_refused_before_training(
    callbacks: Callable[[], list[Callback]],
    model: type[Tiny],
    data: type[Images],
    kind: type[LqError],
    said: str,
    tmp_path: Path,
) -> None:
    watching, made = Watching(), model()
    weights = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    with pytest.raises(kind, match=said):
        fit(tmp_path, made, *callbacks(), watching, data=data())
    assert watching.batches == 0
    assert "forward" not in made.__dict__
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.state_dict().items())
    assert not list(tmp_path.rglob("*"))


def test_a_module_that_does_not_exist_is_refused_without_a_sanity_check_too(tmp_path: Path) -> None:
    watching = Watching()
    with pytest.raises(ConfigError, match=r"skip: 'nett' is unknown\. .*'net"):
        fit(tmp_path, Tiny(), StaticQuantization(skip=["nett"]), watching, num_sanity_val_steps=0)
    assert watching.batches == 0


def test_two_of_one_class_and_name_are_refused_by_the_trainer_itself(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `StaticQuantization`"):
        trainer(tmp_path, StaticQuantization(), StaticQuantization())


def test_limiting_validation_to_nothing_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave limit_val_batches above 0"):
        fit(tmp_path, Tiny(), StaticQuantization(), limit_val_batches=0)


@pytest.mark.parametrize("place", ["run", "quantized", "parent"])
def test_a_file_in_the_way_of_the_output_is_refused_before_training(place: str, tmp_path: Path) -> None:
    folder = {"run": tmp_path / "run", "quantized": tmp_path / "run", "parent": tmp_path / "run" / "below"}[place]
    (tmp_path / "run" / "quantized" if place == "quantized" else tmp_path / "run").parent.mkdir(exist_ok=True)
    (tmp_path / "run" / "quantized" if place == "quantized" else tmp_path / "run").write_text("in the way")
    watching = Watching()
    export = ArtifactExport(["pt2"], output_dir=str(folder))
    with pytest.raises(ConfigError, match=r"output_dir: .* cannot be written .*Not a directory"):
        fit(tmp_path, Tiny(), StaticQuantization(), export, watching, enable_checkpointing=False)
    assert watching.batches == 0


AFTER_TRAINING: dict[str, tuple[Callable[[], StaticQuantization], type[Tiny], str]] = {
    "capture": (StaticQuantization, Branching, rf"CaptureError: .*test_bad_input\.py:{BRANCH}: if x\.sum\(\) > 1e6:"),
    "nothing to quantize": (
        StaticQuantization,
        Elementwise,
        "UnsupportedError: target: nothing in it can be quantized",
    ),
    "target not called": (
        StaticQuantization,
        Around,
        "UnsupportedError: target: the forward of 'Around' is never called in validation_step",
    ),
    "pattern": (lambda: StaticQuantization(skip=["op:bmm"]), Tiny, "ConfigError: skip: 'op:bmm' matches no operator"),
}


@pytest.mark.parametrize(("callback", "model", "said"), AFTER_TRAINING.values(), ids=AFTER_TRAINING)
def test_without_a_sanity_check_training_completes_and_the_manifest_says_what_failed(
    callback: Callable[[], StaticQuantization], model: type[Tiny], said: str, tmp_path: Path
) -> None:
    used, watching, made = callback(), Watching(), model()
    evaluation = Int8Evaluation(latency=None)
    kept = ModelCheckpoint(tmp_path, "kept")
    callbacks = [used, ArtifactExport(["pt2", "onnx"]), evaluation, watching, kept]
    fit(tmp_path, made, *callbacks, num_sanity_val_steps=0, max_epochs=2)
    assert watching.batches == 6
    assert used.candidate is None
    assert used.error is not None
    assert re.search(said, used.error, re.DOTALL)
    entries = json.loads((tmp_path / "quantized" / "manifest.json").read_text())["artifacts"]
    kind, _, text = used.error.partition(": ")
    status, reason = ("unsupported", text) if kind == "UnsupportedError" else ("failed", used.error)
    assert [(entry["format"], entry["status"], entry["error"]) for entry in entries] == [
        ("pt2", status, reason),
        ("onnx", status, reason),
    ]
    saved = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert all(torch.equal(saved["state_dict"][name].cpu(), tensor) for name, tensor in made.state_dict().items())


class Exotic(Tiny):
    """Has an operator that ONNX does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.special.bessel_j0(x))


def test_a_format_that_fails_does_not_cost_the_others(tmp_path: Path) -> None:
    evaluation = Int8Evaluation(latency=None)
    fit(tmp_path, Exotic(), StaticQuantization(), ArtifactExport(["onnx", "pt2"]), evaluation)
    entries = json.loads((tmp_path / "quantized" / "manifest.json").read_text())["artifacts"]
    assert [(entry["format"], entry["status"]) for entry in entries] == [("onnx", "failed"), ("pt2", "ok")]
    assert "ExportError: formats: 'onnx' cannot be made from candidate 'static'" in entries[0]["error"]
    assert lq_plugin.load(tmp_path / "quantized" / "static" / "pt2")
    assert [path.name for path in (tmp_path / "quantized" / "static").iterdir()] == ["pt2"]


def test_a_folder_that_became_unwritable_is_reported_and_training_is_kept(tmp_path: Path) -> None:
    class Blocking(Callback):
        def on_train_end(self, *_: Any) -> None:
            (tmp_path / "quantized").mkdir()
            (tmp_path / "quantized" / "static").write_text("in the way")

    kept = ModelCheckpoint(tmp_path / "kept", "kept")
    fit(tmp_path, Tiny(), StaticQuantization(), ArtifactExport(["pt2"]), Blocking(), kept)
    (entry,) = json.loads((tmp_path / "quantized" / "manifest.json").read_text())["artifacts"]
    assert entry["status"] == "failed"
    assert "quantized/static" in entry["error"]
    assert torch.load(tmp_path / "kept" / "kept.ckpt", weights_only=True)["global_step"] == 3


def test_an_artifact_called_in_another_way_during_evaluation_is_reported(tmp_path: Path) -> None:
    class Fixed(Tiny):
        """Is called with another size in the test split than the graph was captured with."""

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test/mean", self(nn.functional.pad(batch[0], (0, 1))[..., :8, 1:][..., :7]).mean())

        def forward(self, x: Tensor) -> Tensor:
            return self.net(nn.functional.interpolate(x, (8, 8)))

    evaluation = Int8Evaluation(latency=None)
    fit(tmp_path, Fixed(), StaticQuantization(), ArtifactExport(["pt2"]), evaluation)
    assert evaluation.manifest is not None
    (entry,) = evaluation.manifest.artifacts
    assert entry.status == "failed"
    assert "ArtifactError: argument x: expected float32 of shape ['any', 1, 8, 8]" in (entry.error or "")


def test_a_candidate_from_no_batches_is_refused() -> None:
    with pytest.raises(LqError, match=r"batches: it is empty\. Give at least one batch"):
        lq_plugin.quantize(nn.Linear(4, 2), [])
