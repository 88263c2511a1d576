"""lq-quantize makes the model that a checkpoint was saved by."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import commands
import lightning as L
import pytest
import torch
from omegaconf import OmegaConf
from tiny import Tiny, trainer
from torch import nn

from lq_plugin.apps.quantize import load_model
from lq_plugin.errors import ConfigError


class Plain(Tiny):
    def __init__(self, width: int = 4, extra: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.wide = nn.Linear(width, width)


class Keywords(Tiny):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.wide = nn.Linear(options["width"], 2)


class Whole(Tiny):
    def __init__(self, conf: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(conf)
        self.wide = nn.Linear(conf["width"], 2)


class Later(Tiny):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        self.wide = nn.Linear(self.hparams.width, 2)


def built(**options: Any) -> Plain:
    return Plain(**options)


def saved(model: L.LightningModule, folder: Path) -> Path:
    made = trainer(folder, fast_dev_run=True)
    made.strategy.connect(model)
    made.save_checkpoint(folder / "saved.ckpt")
    return folder / "saved.ckpt"


def node(target: Any, **options: Any) -> Any:
    return OmegaConf.create({"_target_": f"{target.__module__}.{target.__qualname__}", **options})


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Plain.__module__])


@pytest.mark.parametrize(
    "model", [Plain(7), Keywords(width=7), Whole({"width": 7})], ids=lambda model: type(model).__name__
)
def test_it_has_the_arguments_and_the_weights_of_its_checkpoint(model: Any, tmp_path: Path) -> None:
    loaded = load_model(node(type(model), **({"width": 5} if isinstance(model, Plain) else {})), saved(model, tmp_path))
    assert type(loaded) is type(model)
    assert torch.equal(loaded.wide.weight, model.wide.weight)


@pytest.mark.parametrize("extra", ["hello ${name}", {"_target_": "os.getcwd"}, (1, {2: 3}), torch.ones(2)], ids=repr)
def test_arguments_are_what_they_were_and_are_not_interpreted(extra: Any, tmp_path: Path) -> None:
    loaded = load_model(node(Plain), saved(Plain(extra=extra), tmp_path))
    assert type(loaded.hparams.extra) is type(extra)
    assert str(loaded.hparams.extra) == str(extra)


def test_a_function_makes_its_model_itself(tmp_path: Path) -> None:
    assert load_model(node(built, width=5), saved(Plain(7), tmp_path)).wide.in_features == 5


def test_a_model_that_builds_layers_later_is_made(tmp_path: Path) -> None:
    model = Later(7)
    model.setup("fit")
    assert load_model(node(Later), saved(model, tmp_path)).hparams.width == 7


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ckpt_path: 'saved.ckpt' does not fit .*Whole .*\+model\.NAME=VALUE"):
        load_model(node(Whole), saved(Plain(7), tmp_path))


def test_a_file_that_is_no_checkpoint_ends_the_command_with_one_line(tmp_path: Path) -> None:
    done = commands.run("lq-quantize", "recipe=mnist_cnn", "ckpt_path=nowhere.ckpt", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        f"lq-quantize: ckpt_path: '{tmp_path / 'nowhere.ckpt'}' cannot be read (No such file or directory). Give a "
        "checkpoint that Lightning saved.\n",
    )
