"""A project laid out as the community's Lightning and Hydra template gets quantization by configuration alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import commands
import pytest

# Written for this test: the template's folders, names of groups and way to instantiate, in a few lines.
PROJECT = {
    "src/__init__.py": "",
    "src/parts.py": """
import lightning as L, torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    def __init__(self, net, optimizer, compile):
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net

    def forward(self, x):
        return self.net(x)

    def step(self, batch, name):
        logits = self(batch[0])
        self.log(f"{name}/acc", (logits.argmax(1) == batch[1]).float().mean())
        loss = F.cross_entropy(logits, batch[1])
        self.log(f"{name}/loss", loss)
        return loss

    def training_step(self, batch, _):
        return self.step(batch, "train")

    def validation_step(self, batch, _):
        self.step(batch, "val")

    def test_step(self, batch, _):
        self.step(batch, "test")

    def configure_optimizers(self):
        return {"optimizer": self.hparams.optimizer(params=self.trainer.model.parameters())}


def network(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 2))


class Points(L.LightningDataModule):
    def __init__(self, data_dir, batch_size):
        super().__init__()
        self.save_hyperparameters(logger=False)

    def loader(self):
        x = torch.randn(32, 6)
        return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), self.hparams.batch_size)

    train_dataloader = val_dataloader = test_dataloader = loader
""",
    "src/train.py": """
import hydra
import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig


def made(group):
    return [instantiate(part) for part in (group or {}).values() if isinstance(part, DictConfig) and "_target_" in part]


@hydra.main(version_base="1.3", config_path="../configs", config_name="train.yaml")
def main(cfg):
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule, model = instantiate(cfg.data), instantiate(cfg.model)
    trainer = instantiate(cfg.trainer, callbacks=made(cfg.get("callbacks")), logger=made(cfg.get("logger")))
    trainer.fit(model=model, datamodule=datamodule, ckpt_path=cfg.get("ckpt_path"))
    best = trainer.checkpoint_callback.best_model_path
    trainer.test(model=model, datamodule=datamodule, ckpt_path=best, verbose=False, weights_only=False)
    return trainer.callback_metrics.get(cfg.get("optimized_metric"))


main()
""",
    "configs/train.yaml": """
defaults:
  - _self_
  - data: points
  - model: points
  - callbacks: default
  - logger: csv
  - trainer: default
  - paths: default
  - extras: default
  - hydra: default
  - experiment: null
  - hparams_search: null
  - optional local: default
  - debug: null
task_name: train
tags: [dev]
ckpt_path: null
seed: 1
""",
    "configs/data/points.yaml": "_target_: src.parts.Points\ndata_dir: ${paths.data_dir}\nbatch_size: 8\n",
    "configs/model/points.yaml": """
_target_: src.parts.Classifier
optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.01}
net: {_target_: src.parts.network, width: 8}
compile: false
""",
    "configs/callbacks/default.yaml": """
defaults: [model_checkpoint, early_stopping, _self_]
model_checkpoint: {dirpath: "${paths.output_dir}/checkpoints", monitor: val/acc, mode: max, save_last: true}
early_stopping: {monitor: val/acc, patience: 100, mode: max}
""",
    "configs/callbacks/model_checkpoint.yaml": """
model_checkpoint: {_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: null, monitor: null}
""",
    "configs/callbacks/early_stopping.yaml": """
early_stopping: {_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: "???", mode: min}
""",
    "configs/logger/csv.yaml": """
csv: {_target_: lightning.pytorch.loggers.csv_logs.CSVLogger, save_dir: "${paths.output_dir}", name: csv/}
""",
    "configs/trainer/default.yaml": """
_target_: lightning.pytorch.trainer.Trainer
default_root_dir: ${paths.output_dir}
max_epochs: 1
accelerator: cpu
devices: 1
log_every_n_steps: 1
enable_progress_bar: false
enable_model_summary: false
""",
    "configs/paths/default.yaml": """
root_dir: ${oc.env:PROJECT_ROOT}
data_dir: ${paths.root_dir}/data/
log_dir: ${paths.root_dir}/logs/
output_dir: ${hydra:runtime.output_dir}
work_dir: ${hydra:runtime.cwd}
""",
    "configs/hydra/default.yaml": """
run: {dir: "${paths.log_dir}/${task_name}/runs/only"}
sweep: {dir: "${paths.log_dir}/${task_name}/multiruns/only", subdir: "${hydra.job.num}"}
""",
    "configs/extras/default.yaml": "ignore_warnings: false\nenforce_tags: true\nprint_config: false\n",
    "configs/debug/default.yaml": "# @package _global_\ntask_name: debug\n",
    "configs/hparams_search/points.yaml": "# @package _global_\noptimized_metric: val/acc\n",
}
# All that is added: where our groups are, and an experiment that chooses among them.
ADDED = {
    "configs/experiment/int8.yaml": """
# @package _global_
defaults:
  - /quantization: static
  - /observer: percentile
  - /export: pt2
  - /evaluation: default
  - /budget: absolute
tags: [int8]
observer: {percentile: 99.9}
callbacks:
  static: {samples: 16, algorithms: []}
  evaluation: {latency: null, budget: {max_drop: 0.5}}
""",
}
SEARCHPATH = "hydra.searchpath=[pkg://lq_plugin.conf]"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in (PROJECT | ADDED).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.lstrip())
    return tmp_path


def train(project: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return commands.run("src/train.py", *overrides, cwd=project, environment={"PROJECT_ROOT": str(project)})


def test_an_experiment_brings_quantization_into_the_template(project: Path) -> None:
    config = project / "configs" / "train.yaml"
    config.write_text(config.read_text() + "hydra: {searchpath: [pkg://lq_plugin.conf]}\n")
    done = train(project, "experiment=int8", "debug=default")
    assert done.returncode == 0, done.stderr
    run = project / "logs" / "debug" / "runs" / "only"
    manifest = json.loads((run / "quantized" / "manifest.json").read_text())
    (made,) = manifest["artifacts"]
    assert (made["candidate"], made["format"], made["status"]) == ("static", "pt2", "ok")
    assert manifest["config"]["quantization"]["static"]["observer"] == {"name": "percentile", "percentile": 99.9}
    assert set(manifest["fp32"]["metrics"]) == {"val/acc", "val/loss", "test/acc", "test/loss"}
    assert {file.name for file in (run / "checkpoints").iterdir()} >= {"last.ckpt"}


def test_the_command_line_alone_is_enough_and_is_checked(project: Path) -> None:
    shown = train(project, SEARCHPATH, "+quantization=dynamic", "+export=pt2", "--cfg", "job")
    assert "_target_: lq_plugin.DynamicQuantization" in shown.stdout
    assert "output_dir: ${paths.output_dir}" in shown.stdout
    wrong = train(project, SEARCHPATH, "experiment=int8", "callbacks.static.smaples=3")
    assert wrong.returncode == 1
    assert "Key 'smaples' not in 'StaticQuantization'" in wrong.stderr
