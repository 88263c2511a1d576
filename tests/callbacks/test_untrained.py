"""What comes at the end of fit, for weights that were trained before: the hooks that set up run, the others do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from tiny import Images, Tiny, trainer
from torch import nn

from lq_plugin import ArtifactExport, DynamicQuantization, StaticQuantization
from lq_plugin.callbacks.untrained import without_training
from lq_plugin.checkpoints import LIVE, Checkpoint
from lq_plugin.errors import ConfigError, UnsupportedError
from lq_plugin.store import Store


def run(folder: Path, *callbacks: Any, model: Any = None, data: Any = None, **options: Any) -> L.Trainer:
    made = trainer(folder, *callbacks, **options)
    store = Store(folder / "store")
    without_training(made, model or Tiny(), Images() if data is None else data, lambda _: Checkpoint(LIVE, 7), store)
    return made


class Recording:
    """Writes down which hooks are called."""

    calls: list[str]

    def prepare_data(self) -> None:
        self.calls.append(f"{type(self).__name__}.prepare_data")

    def setup(self, stage: str) -> None:
        self.calls.append(f"{type(self).__name__}.setup {stage}")

    def teardown(self, stage: str) -> None:
        self.calls.append(f"{type(self).__name__}.teardown {stage}")


class Data(Recording, Images):
    """Knows no other stage than fit, in which alone it makes its data."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.loader = Images().val_dataloader() if stage == "fit" else None

    def val_dataloader(self) -> Any:
        return self.loader


class Model(Recording, Tiny):
    """Builds its layers late."""

    def configure_model(self) -> None:
        self.calls.append("Model.configure_model")
        self.head = nn.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        return self.head(super().forward(x))


class Static(StaticQuantization):
    calls: list[str]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.calls.append(f"Static.setup {stage}")
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.calls.append("Static.on_fit_start")
        super().on_fit_start(trainer, pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.calls.append(f"Static.teardown {stage}")


class Training(Callback):
    """A callback that trains, which has no business here."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") or name in ("setup", "teardown"):
            raise AssertionError(name)
        return super().__getattribute__(name)


def test_hooks_run_as_in_fit_and_other_callbacks_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for kind in (Recording, Static):
        monkeypatch.setattr(kind, "calls", calls, raising=False)
    static, model = Static(), Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(tmp_path, Training(), static, model=model, data=Data())
    first = ("Data.prepare_data", "Model.prepare_data", "Data.setup fit", "Static.setup fit", "Model.setup fit")
    last = ("Data.teardown fit", "Static.teardown fit", "Model.teardown fit")
    assert calls == [*first, "Model.configure_model", "Static.on_fit_start", *last]
    assert static.candidate is not None
    assert static.candidate.calibration.provenance.checkpoint_global_step == 7
    assert static.candidate.calibration.provenance.samples == 16
    assert all((model.state_dict()[name] == tensor).all() for name, tensor in before.items())


def test_limits_of_the_trainer_hold(tmp_path: Path) -> None:
    static = StaticQuantization()
    run(tmp_path, static, limit_val_batches=1)
    assert static.candidate is not None
    assert static.candidate.calibration.provenance.samples == 8
    with pytest.raises(ConfigError, match="calibration runs during validation, which is disabled"):
        run(tmp_path, static, limit_val_batches=0)


class Bringing(Tiny):
    """Brings callbacks of its own."""

    def configure_callbacks(self) -> Any:
        return [StaticQuantization(), ArtifactExport(["onnx"])]


def test_callbacks_of_the_module_take_part(tmp_path: Path) -> None:
    run(tmp_path, model=Bringing())
    assert (tmp_path / "quantized" / "manifest.json").is_file()


def test_a_mistake_ends_everything_before_anything_is_exported(tmp_path: Path) -> None:
    callbacks = [StaticQuantization(skip=["op:nonsense"]), DynamicQuantization(), ArtifactExport(["onnx"])]
    with pytest.raises(ConfigError, match="skip: 'op:nonsense' is unknown"):
        run(tmp_path, *callbacks)
    assert not (tmp_path / "quantized").exists()


def test_what_the_model_does_not_allow_ends_it_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    unable = DynamicQuantization(skip=["*"])
    with pytest.raises(UnsupportedError, match="nothing in it can be quantized"):
        run(tmp_path, unable)
    run(tmp_path, unable, StaticQuantization())


class Ended(CSVLogger):
    status = ""

    def finalize(self, status: str) -> None:
        super().finalize(status)
        self.status = status


@pytest.mark.parametrize(("target", "status"), [("net", "success"), ("nett", "failed")])
def test_loggers_learn_how_it_ended(target: str, status: str, tmp_path: Path) -> None:
    logger = Ended(tmp_path)
    if status == "success":
        run(tmp_path, StaticQuantization(target=target), logger=logger)
    else:
        with pytest.raises(ConfigError, match="target: 'nett' is unknown"):
            run(tmp_path, StaticQuantization(target=target), logger=logger)
    assert logger.status == status
