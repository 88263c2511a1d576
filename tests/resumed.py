"""A training that does the same after ``fit(ckpt_path="last")`` as without a kill; see callbacks/test_resuming.py.

``python resumed.py FOLDER STEP``: killed after so many steps.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tiny import Images, Tiny, images, trainer
from torch.utils.data import DataLoader, DistributedSampler

from lq_plugin import ArtifactExport, Int8Evaluation, StaticQuantization
from lq_plugin.report.manifest import Manifest

SEED = 7


class Shuffled(Images):
    """The order of an epoch depends on its number alone; the loader draws nothing from the global generator."""

    def train_dataloader(self) -> Any:
        data = images(self.samples, 1)
        sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True, seed=SEED)
        return DataLoader(data, self.batch_size, sampler=sampler, generator=torch.Generator())


class Seeded(Tiny):
    """So does what Dropout draws."""

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(SEED + self.current_epoch)


class Killing(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, *callbacks: Callback, ckpt_path: str | None = None) -> Manifest:
    """Three epochs of three steps, with a checkpoint after each epoch."""
    seed_everything(SEED, workers=True, verbose=False)
    evaluation = Int8Evaluation(latency=None)
    kept = ModelCheckpoint(folder / "checkpoints", monitor="val/loss", save_last=True)
    ours = (StaticQuantization(algorithms=()), ArtifactExport(["pt2"]), evaluation)
    trainer(folder, *ours, kept, *callbacks, max_epochs=3).fit(Seeded(), datamodule=Shuffled(), ckpt_path=ckpt_path)
    assert evaluation.manifest is not None
    return evaluation.manifest


if __name__ == "__main__":
    run(Path(sys.argv[1]), Killing(int(sys.argv[2])))
