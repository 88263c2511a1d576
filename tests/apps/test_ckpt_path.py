"""What may be given as a checkpoint to resume from and to quantize, and what is kept of a fit, in both commands."""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
import tiny
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf, open_dict

from lq_plugin.apps.quantize import load_model, quantize
from lq_plugin.apps.train import train
from lq_plugin.errors import ConfigError

COMMANDS = {"train": train, "quantize": quantize}
TINY = (
    "model._target_=tiny.Tiny",
    "data._target_=tiny.Images",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "export=none",
    "evaluation=none",
    "logger=none",
    "callbacks=checkpoint",
    "callbacks.checkpoint.monitor=val/loss",
)
anew = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


others = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")


class Planted:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    HydraConfig.instance().cfg = None


def configured(command: str, *overrides: str) -> DictConfig:
    """The configuration of a command line."""
    run = [f"hydra.runtime.output_dir='{Path.cwd() / 'run'}'", "hydra.job.num=0", "hydra.job.id=0"]
    with initialize_config_module("lq_plugin.conf", version_base="1.3"):
        config = compose(command, [*TINY, *overrides, *run], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a checkpoint of one epoch holds."""
    folder = tmp_path_factory.mktemp("saved")
    tiny.fit(folder, tiny.Tiny(), ModelCheckpoint(folder, "saved"))
    return dict(torch.load(folder / "saved.ckpt", weights_only=True))


FILES: dict[str, tuple[Callable[[Path, dict[str, Any]], Any], str]] = {
    "missing": (lambda file, saved: None, "cannot be read .No such file"),
    "empty": (lambda file, saved: file.touch(), "is empty"),
    "text": (lambda file, saved: file.write_text("weights"), "was not written by torch.save"),
    "pickle": (lambda file, saved: file.write_bytes(pickle.dumps({"state_dict": {}})), "was not written by torch.save"),
    "truncated": (lambda file, saved: (torch.save(saved, file), os.truncate(file, 3000)), "is cut off or damaged"),
    "another zip": (lambda file, saved: zipfile.ZipFile(file, "w").close(), "is a zip file, but was not"),
    "weights alone": (lambda file, saved: torch.save(saved["state_dict"], file), "holds no state_dict"),
    "not of Lightning": (
        lambda file, saved: torch.save({"state_dict": saved["state_dict"]}, file),
        "does not say which version of Lightning",
    ),
    "a list": (lambda file, saved: torch.save([1], file), "holds no state_dict"),
    "no number of steps": (
        lambda file, saved: torch.save(saved | {"global_step": "x"}, file),
        "has a global_step of 'x'",
    ),
    "planted": (lambda file, saved: torch.save(Planted(), file), "holds no state_dict"),
    "planted weights": (
        lambda file, saved: torch.save(saved | {"state_dict": {"net.0.weight": Planted()}}, file),
        r"has a \w+\.mkdir as 'net\.0\.weight' in its state_dict",
    ),
    "folder": (lambda file, saved: file.mkdir(), "is a folder, as sharded strategies save"),
    "pipe": (lambda file, saved: os.mkfifo(file), "is not a regular file"),
    "device": (lambda file, saved: file.symlink_to("/dev/zero"), "is not a regular file"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_checkpoint_is_refused(kind: str, command: str, checkpoint: dict[str, Any]) -> None:
    prepare, message = FILES[kind]
    prepare(Path("given.ckpt"), checkpoint)
    with pytest.raises(
        ConfigError, match=rf"ckpt_path: '.*given\.ckpt' {message}.*Give a checkpoint that Lightning saved"
    ):
        COMMANDS[command](configured(command, "ckpt_path=given.ckpt"))
    assert not Path("ran").exists()


@others
def test_a_fit_is_resumed_without_unpickling(checkpoint: dict[str, Any]) -> None:
    torch.save(checkpoint | {"hyper_parameters": {"optimizer": Planted()}}, "given.ckpt")
    with pytest.raises(ConfigError, match=r"ckpt_path: 'given\.ckpt' holds a \w+\.mkdir, .* weights_only=false"):
        train(configured("train", "ckpt_path=given.ckpt"))
    assert not Path("ran").exists()
    train(configured("train", "ckpt_path=given.ckpt", "weights_only=false", "fit.reuse=false"))
    assert Path("ran").exists()


@others
def test_a_link_to_a_checkpoint_is_resumed_from(checkpoint: dict[str, Any]) -> None:
    torch.save(checkpoint, "best.ckpt")
    Path("last.ckpt").symlink_to("best.ckpt")
    train(configured("train", "ckpt_path=last.ckpt"))
    (kept,) = Path("fits").glob("*/fit.json")
    assert torch.load(kept.with_name("live.ckpt"), weights_only=True)["global_step"] == 6


def test_a_checkpoint_is_quantized_without_unpickling(
    checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(checkpoint | {"planted": Planted(), "lr_schedulers": [Planted()]}, "given.ckpt")
    quantize(configured("quantize", "ckpt_path=given.ckpt"))
    assert not Path("ran").exists()
    assert "calibrating 'static' in a separate validation pass" in capsys.readouterr().out


# Saves the sharded folder of each strategy and makes one file of it as the errors say. FSDPStrategy needs a GPU; where
# there is none, its folder, which has the same files, is made of the other one by the keys under which the weights are.
SHARDED = """
import runpy, shutil, sys
sys.path.append({tests!r})
import torch, torch.distributed.checkpoint as parts
import tiny
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from lq_plugin import StaticQuantization
from lq_plugin.errors import ConfigError

class Sharded(tiny.Tiny):
    def configure_model(self):
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

def consolidate(namespace, folder):
    sys.argv = ["", folder]
    runpy.run_module(f"lightning.{{namespace}}.utilities.consolidate_checkpoint", run_name="__main__")

def fit(model, strategy, callback, device="cpu"):
    options = {{"max_steps": 1, "limit_val_batches": 1, "devices": 1, "accelerator": device}}
    tiny.fit(".", model, callback, strategy=strategy, **options)

def refused(*given):
    try:
        fit(*given)
    except ConfigError as error:
        print(error)

fit(Sharded(), ModelParallelStrategy(), ModelCheckpoint(".", "parallel"))
consolidate("fabric", "parallel.ckpt")
refused(Sharded(), ModelParallelStrategy(), StaticQuantization())
if torch.cuda.is_available():
    torch.distributed.destroy_process_group()
    fit(tiny.Tiny(), FSDPStrategy(state_dict_type="sharded"), ModelCheckpoint(".", "fsdp"), "gpu")
    refused(tiny.Tiny(), FSDPStrategy(), StaticQuantization(), "gpu")
else:
    saved = torch.load("parallel.ckpt.consolidated", weights_only=True)
    pieces = {{"model": saved.pop("state_dict"), "optimizer_0": saved.pop("optimizer_0")}}
    parts.save(pieces, checkpoint_id="fsdp.ckpt", no_dist=True)
    torch.save(saved, "fsdp.ckpt/meta.pt")
consolidate("pytorch", "fsdp.ckpt")
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of sharded checkpoints, and what is said of our callbacks beside such a strategy."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "script.py").write_text(SHARDED.format(tests=str(Path(tiny.__file__).parent)))
    done = commands.run("script.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize(("name", "namespace"), [("parallel", "fabric"), ("fsdp", "pytorch")])
def test_a_sharded_checkpoint_is_quantized_as_one_file(
    name: str, namespace: str, sharded: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = sharded[0] / f"{name}.ckpt"
    with pytest.raises(ConfigError, match=rf"is a folder.* lightning\.{namespace}\.utilities\.consolidate_checkpoint"):
        quantize(configured("quantize", f"ckpt_path={file}"))
    quantize(configured("quantize", f"ckpt_path={file}.consolidated", "algorithms=none"))
    assert "calibrating 'static' in a separate validation pass" in capsys.readouterr().out


def test_a_strategy_that_splits_parameters_is_refused_before_training(sharded: tuple[Path, str]) -> None:
    assert "strategy: ModelParallelStrategy splits the parameters over processes, and StaticQuantization" in sharded[1]
    assert "then run lq-quantize ckpt_path=FILE; if the checkpoint is a folder, first convert it" in sharded[1]
    assert ("FSDPStrategy splits the parameters" in sharded[1]) == torch.cuda.is_available()


class Optimized(tiny.Tiny):
    """Saves a hyperparameter that is no plain value."""

    def __init__(self, width: int = 4, optimizer: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.wide = torch.nn.Linear(width, width)


def saved(model: Any) -> Path:
    made = tiny.trainer(Path.cwd(), fast_dev_run=True)
    made.strategy.connect(model)
    made.save_checkpoint("saved.ckpt")
    return Path("saved.ckpt")


def node(**options: Any) -> DictConfig:
    return OmegaConf.create({"_target_": f"{Optimized.__module__}.Optimized", **options})


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "Optimized", Optimized, raising=False)
    monkeypatch.setattr(Optimized, "__module__", "tiny")


def test_a_hyperparameter_that_is_not_plain_has_to_be_given(
    importable: None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(Optimized(7, functools.partial(torch.optim.SGD, lr=0.1)))
    with pytest.raises(
        ConfigError, match=r"optimizer: functools\.partial\). Give \+model\.optimizer=VALUE, .*_only=false"
    ):
        load_model(node(), file)
    loaded = load_model(node(optimizer="given"), file)
    assert (loaded.hparams.optimizer, loaded.wide.in_features) == ("given", 7)
    assert "model.optimizer is taken from the configuration" in capsys.readouterr().out
    assert load_model(node(), file, weights_only=False).hparams.optimizer.keywords == {"lr": 0.1}


def test_what_cannot_be_unpickled_is_a_named_error(importable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "Gone", type("Gone", (), {"__module__": "tiny"}), raising=False)
    file = saved(Optimized(7, tiny.Gone()))  # type: ignore[attr-defined]
    monkeypatch.delattr(tiny, "Gone")
    with pytest.raises(ConfigError, match=r"ckpt_path: 'saved\.ckpt' cannot be unpickled \(AttributeError: .*Gone"):
        load_model(node(), file, weights_only=False)


@pytest.mark.parametrize("named", ["planted.Adam", {"class_path": "planted.Adam"}, [{"class_path": "planted.Adam"}]])
def test_what_a_checkpoint_names_is_not_imported(
    named: Any, importable: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("planted.py").write_text("open('ran', 'w').close()\nclass Adam:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = saved(Optimized(7))
    content = torch.load(file, weights_only=True)
    content["hyper_parameters"] |= {"_instantiator": "lightning.pytorch.cli.instantiate_module", "optimizer": named}
    torch.save(content, file)
    if isinstance(named, str):
        assert load_model(node(), file).hparams.optimizer == named
    else:
        with pytest.raises(ConfigError, match="optimizer: a class_path, which would be imported"):
            load_model(node(), file)
    assert not Path("ran").exists()


@anew
def test_a_damaged_cache_blocks_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    train(configured("train"))
    (record,) = Path("fits").glob("*/fit.json")
    assert "fitting; the fit is cached in" in capsys.readouterr().out
    record.write_text("")
    train(configured("train"))
    told = capsys.readouterr().out
    assert re.search(r"the cached fit in .*: fit\.json is not valid JSON .* renamed to \w+\.damaged", told)
    assert "fitting; the fit is cached in" in told
    assert set(json.loads(record.read_text())) == {"checkpoints", "sha256", "digest"}

    train(configured("train", "callbacks.static.samples=8"))
    (calibration,) = Path("fits").glob("*.store/calibrations/*.pt")
    os.truncate(calibration, 100)
    capsys.readouterr()
    train(configured("train", "callbacks.static.samples=8"))
    told = capsys.readouterr().out
    assert f"the cached fit in {record.parent.absolute()} is reused" in told
    assert f"the calibration kept in {calibration.absolute()}: it is cut off" in told
    assert "calibrating 'static' in a separate validation pass" in told

    train(configured("train", "callbacks.static.samples=8"))
    assert "reusing the calibration of 'static' from an earlier run" in capsys.readouterr().out
