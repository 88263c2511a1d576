"""Tiny models and data: a run takes a few seconds on one core."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

SIDE = 8
CLASSES = 3


def images(samples: int, seed: int = 0) -> TensorDataset:
    """Noise images, brighter by class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    noise = torch.randn(samples, 1, SIDE, SIDE, generator=generator)
    return TensorDataset(noise + labels.view(-1, 1, 1, 1), labels)


class Images(L.LightningDataModule):
    """Shuffled training data, and validation and test data of two batches each."""

    def __init__(self, samples: int = 24, batch_size: int = 8, val_samples: int = 16) -> None:
        super().__init__()
        self.samples, self.batch_size, self.val_samples = samples, batch_size, val_samples

    def train_dataloader(self) -> Any:
        return DataLoader(images(self.samples, 1), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(images(self.val_samples, 2), self.batch_size)

    def test_dataloader(self) -> Any:
        return DataLoader(images(self.val_samples, 3), self.batch_size)


def network(dropout: float = 0.3) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU, Dropout and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(144, CLASSES)
    )


class Steps:
    """What a classifier of either Lightning namespace does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("test", batch)

    def evaluate(self, split: str, batch: Any) -> None:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log(f"{split}/loss", F.cross_entropy(logits, batch[1]))
        self.log(f"{split}/acc", self.accuracy)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Tiny(Steps, L.LightningModule):
    """A classifier with Dropout, BatchNorm and a logged torchmetrics object."""


def trainer(folder: Path, *callbacks: Any, **options: Any) -> L.Trainer:
    """A quiet Trainer of one epoch without a logger."""
    defaults: dict[str, Any] = {
        "accelerator": os.environ.get("LQ_ACCELERATOR", "cpu"),
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **options})


def fit(folder: Path, model: Any, *callbacks: Any, data: Any = None, **options: Any) -> L.Trainer:
    """Train on ``data``, tiny images by default, and return the Trainer."""
    made = trainer(folder, *callbacks, **options)
    made.fit(model, datamodule=Images() if data is None else data)
    return made
