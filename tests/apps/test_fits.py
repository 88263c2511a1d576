"""What makes two fits the same, and what is kept of one."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from lightning import seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from omegaconf import DictConfig, open_dict
from tiny import Tiny, fit

from lq_plugin import StaticQuantization
from lq_plugin.apps import command, fits, train
from lq_plugin.apps.fits import Fit, KeepFit

MODULES = {
    "losses.py": "scale = 1.0\n",
    "watching.py": "import lightning as L\nclass Watching(L.Callback):\n    pass\n",
    "parts.py": "class Part:\n    pass\n",
    "mine.py": (
        "from lq_plugin.recipes.mnist_cnn.model import MnistCnn\n"
        "def make(**options):\n    import losses\n    return MnistCnn()\n"
    ),
}
OWN = ("model._target_=mine.make", "+model.part._target_=parts.Part", "+callbacks.own._target_=watching.Watching")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    HydraConfig.instance().cfg = None


def composed(*overrides: str, run: str = "first") -> DictConfig:
    """The configuration of this command line, as lq-train has it."""
    with initialize_config_module("lq_plugin.conf", version_base="1.3"):
        given = [
            *OWN,
            *overrides,
            f"hydra.runtime.output_dir='{Path.cwd() / run}'",
            "hydra.job.num=0",
            "hydra.job.id=0",
        ]
        config = compose("train", ["recipe=mnist_cnn", *given], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


def digest(*overrides: str, run: str = "first", environment_seed: int = 0) -> str:
    """As lq-train names the fit of this command line."""
    config = composed(*overrides, run=run)
    seed_everything(environment_seed if config.seed is None else config.seed, verbose=False)
    return fits.digest(config)


@pytest.mark.parametrize("given", [".sign=/mine/key.pem", "={formats: [onnx], sign: '/mine/key.pem', layout: plain}"])
def test_what_a_manifest_holds_of_a_command_has_no_path_of_a_private_key(given: str, project: Path) -> None:
    config = composed(f"callbacks.export{given}")
    assert config.callbacks.export.sign == "/mine/key.pem"
    words = command.again("lq-train")
    assert f"callbacks.export{given.replace('/mine/key.pem', command.KEY)}".replace("'", "") in words
    with open_dict(config):
        del config["hydra"]  # as in a run
    assert "mine/" not in str(train.plain(config)) + str(words)


@pytest.mark.parametrize(
    "override",
    [
        "quantization=both",
        "export=onnx",
        "evaluation=none",
        "budget=absolute",
        "observer=minmax",
        "objectives=[sqnr_db]",
    ],
)
def test_what_comes_after_training_makes_no_other_fit(override: str, project: Path) -> None:
    assert digest(override) == digest()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model.lr=0.1",
        "+model.part.x=1",
        "data.batch_size=8",
        "trainer.gradient_clip_val=15",
        "+callbacks.own.x=1",
    ],
)
def test_another_training_is_another_fit(override: str, project: Path) -> None:
    assert digest(override) != digest()


def test_where_a_run_writes_makes_no_other_fit(project: Path) -> None:
    inside = "callbacks.checkpoint.dirpath=${hydra:runtime.output_dir}/best"
    assert digest(inside, run="a.b") == digest(inside, run="ü")
    assert digest("trainer.default_root_dir=.", "trainer.gradient_clip_val=1.5") != digest(
        "trainer.default_root_dir=.", "trainer.gradient_clip_val=15"
    )


def test_a_seed_from_the_environment_counts(project: Path) -> None:
    assert digest("seed=null", environment_seed=1) != digest("seed=null", environment_seed=2)


@pytest.mark.parametrize("file", MODULES)
def test_changed_code_is_another_fit(file: str, project: Path) -> None:
    before = digest()
    (project / file).write_text(f"{MODULES[file]}# changed\n")
    assert digest() != before


def test_a_changed_checkpoint_to_resume_from_is_another_fit(project: Path) -> None:
    (project / "last.ckpt").write_bytes(b"one")
    before = digest("ckpt_path=last.ckpt")
    (project / "last.ckpt").write_bytes(b"two")
    assert digest("ckpt_path=last.ckpt") != before


class Partial(Tiny):
    """Saves hyperparameters that are no plain values, as is usual with Hydra's ``_partial_`` optimizers."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


class Rescuing(Checkpoint):
    """Saves in its own way, and monitors nothing."""


def test_what_is_kept_can_be_read_without_unpickling(tmp_path: Path) -> None:
    kept, model = Fit(tmp_path / "fits" / "digest"), Partial(functools.partial(torch.optim.Adam, lr=0.1))
    callbacks = [
        StaticQuantization(),
        KeepFit(kept),
        ModelCheckpoint(tmp_path, "best", monitor="val/loss"),
        Rescuing(),
    ]
    fit(tmp_path, model, *callbacks)
    assert kept.done
    for choice in ("best", "best:val/loss", "last", "live"):
        content = torch.load(kept.checkpoint(choice), weights_only=True)
        assert torch.equal(content["state_dict"]["net.0.weight"], model.net[0].weight)
        assert content["callbacks"].keys() == {"StaticQuantization[static]"}
        assert not {"hyper_parameters", "optimizer_states", "loops"} & content.keys()


class Plain(Tiny):
    """Saves hyperparameters that are plain values."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_plain_hyperparameters_are_kept_for_lq_quantize(tmp_path: Path) -> None:
    kept = Fit(tmp_path / "fits" / "digest")
    fit(tmp_path, Plain(4), KeepFit(kept), enable_checkpointing=False)
    content = torch.load(kept.checkpoint("live"), weights_only=True)
    assert content["hyper_parameters"] == {"width": 4}
    assert {"state_dict", "global_step", "epoch", "pytorch-lightning_version"} <= content.keys()


def test_a_fit_that_cannot_be_kept_is_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fits").write_text("in the way")
    used = StaticQuantization()
    fit(tmp_path, Tiny(), used, KeepFit(Fit(tmp_path / "fits" / "digest")), enable_checkpointing=False)
    assert used.candidate is not None
    assert "the fit is not cached for other jobs (NotADirectoryError" in capsys.readouterr().out
