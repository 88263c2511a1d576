"""Somebody else's project: quantization by configuration alone, from Hydra and from LightningCLI."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import commands
import pytest
from somebodys import MODEL

TRAIN = """
import hydra
from hydra.utils import instantiate


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config):
    callbacks = [instantiate(node) for node in (config.get("callbacks") or {}).values()]
    trainer = instantiate(config.trainer, callbacks=callbacks)
    trainer.fit(instantiate(config.model), datamodule=instantiate(config.data))


main()
"""
CONFIG = """
defaults:
  - _self_
  - callbacks: checkpoint
trainer: {_target_: lightning.Trainer, max_epochs: 1, accelerator: cpu, logger: false, enable_progress_bar: false,
          enable_model_summary: false, default_root_dir: out}
model: {_target_: model.Net}
data: {_target_: model.Data}
"""
CHECKPOINT = "checkpoint: {_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: out}\n"
CLI = """
from lightning.pytorch.cli import LightningCLI
from model import Data, Net

LightningCLI(Net, Data)
"""
CLI_YAML = """
seed_everything: 1
trainer:
  max_epochs: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: out
  logger: {class_path: CSVLogger, init_args: {save_dir: out, name: "", version: ""}}
  callbacks:
    - class_path: lq_plugin.StaticQuantization
      init_args:
        samples: 16
        observer: {class_path: lq_plugin.PercentileObserver, init_args: {percentile: 99.9}}
        skip: [net.2]
    - {class_path: lq_plugin.ArtifactExport, init_args: {formats: [pt2]}}
    - class_path: lq_plugin.Int8Evaluation
      init_args: {latency: null, budget: {max_drop: 0.5, metric: val/loss, mode: min}}
model: {width: 4}
"""
FABRIC = """
import torch
from lightning.fabric import Fabric
from model import Data, Net

import lq_plugin

fabric = Fabric(accelerator="cpu", devices=1)
network = Net()
model, optimizer = fabric.setup(network.net, network.configure_optimizers())
for x, y in (loader := fabric.setup_dataloaders(Data().train_dataloader())):
    optimizer.zero_grad()
    fabric.backward(torch.nn.functional.mse_loss(model(x), y))
    optimizer.step()
for name, given in (("wrapped", model), ("own", model.module)):
    candidate = lq_plugin.quantize(given, (x for x, _ in loader), lq_plugin.Scheme(algorithms=[]), name=name)
    made = lq_plugin.load(lq_plugin.export(candidate, "out", ["pt2"])["pt2"].path)
    print(name, made(x).shape == y.shape, bool((made(x) - model(x)).norm() < 0.1 * model(x).norm()))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that has never heard of lq_plugin."""
    (tmp_path / "configs" / "callbacks").mkdir(parents=True)
    (tmp_path / "configs" / "train.yaml").write_text(CONFIG)
    (tmp_path / "configs" / "callbacks" / "checkpoint.yaml").write_text(CHECKPOINT)
    for name, text in (("model.py", MODEL), ("train.py", TRAIN), ("cli.py", CLI), ("fit.py", FABRIC)):
        (tmp_path / name).write_text(text)
    return tmp_path


def run(project: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run(script, *arguments, cwd=project)


def statuses(project: Path, folder: str = "out") -> dict[str, str]:
    content = json.loads((project / folder / "quantized" / "manifest.json").read_text())
    return {f"{entry['candidate']}/{entry['format']}": entry["status"] for entry in content["artifacts"]}


TARGETS = (
    "+callbacks.static._target_=lq_plugin.StaticQuantization",
    "+callbacks.export._target_=lq_plugin.ArtifactExport",
    "+callbacks.export.formats=[pt2]",
)


def test_targets_on_the_command_line_are_enough(project: Path) -> None:
    done = run(project, "train.py", *TARGETS, "+callbacks.static.samples=16")
    assert done.returncode == 0, done.stderr
    assert statuses(project) == {"static/pt2": "not_evaluated"}


def test_a_typo_on_the_command_line_is_an_error_that_names_it(project: Path) -> None:
    done = run(project, "train.py", *TARGETS, "+callbacks.static.smaples=16")
    assert done.returncode == 1
    assert "smaples" in done.stderr


def test_a_search_path_and_a_line_in_the_defaults_bring_the_groups(project: Path) -> None:
    config = project / "configs" / "train.yaml"
    groups = "  - paths: default\n  - quantization: both\n  - export: onnx\n"
    config.write_text(
        CONFIG.replace("  - callbacks: checkpoint\n", f"  - callbacks: checkpoint\n{groups}")
        + "hydra: {searchpath: [pkg://lq_plugin.conf]}\n"
    )
    logger = "trainer.logger={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: out}"
    options = ("callbacks.static.samples=16", "callbacks.dynamic.skip=[net.2]", "hydra.run.dir=mine", logger)
    done = run(project, "train.py", *options)
    assert done.returncode == 0, done.stderr
    made = ("static/onnx", "dynamic/onnx", "dynamic/torch")
    assert statuses(project, "mine") == dict.fromkeys(made, "not_evaluated")
    wrong = run(project, "train.py", "callbacks.static.samples=many")
    assert wrong.returncode == 1
    assert "'many'" in wrong.stderr
    unknown = run(project, "train.py", "callbacks.dynamic.skips=[net.2]")
    assert unknown.returncode == 1
    assert "Key 'skips' not in 'DynamicQuantization'" in unknown.stderr


def test_lightning_cli_takes_the_callbacks_from_its_yaml_and_its_command_line(project: Path) -> None:
    (project / "cli.yaml").write_text(CLI_YAML)
    done = run(project, "cli.py", "fit", "--config=cli.yaml", "--trainer.callbacks+=lq_plugin.DynamicQuantization")
    assert done.returncode == 0, done.stderr
    assert statuses(project) == {"static/pt2": "ok", "dynamic/pt2": "unsupported", "dynamic/torch": "ok"}
    made = json.loads((project / "out" / "quantized" / "manifest.json").read_text())
    assert made["config"]["quantization"]["static"]["observer"] == {"name": "percentile", "percentile": 99.9}
    assert made["budget"]["max_drop"] == 0.5
    assert "lq_plugin.PercentileObserver" in (project / "out" / "config.yaml").read_text()  # which repeats the run
    wrong = run(project, "cli.py", "fit", "--config=cli.yaml", "--trainer.callbacks.smaples=1")
    assert wrong.returncode != 0
    assert "smaples" in wrong.stderr


def test_a_model_trained_with_fabric_is_quantized_as_fabric_wraps_it_or_by_itself(project: Path) -> None:
    done = run(project, "fit.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["wrapped True True", "own True True"]
