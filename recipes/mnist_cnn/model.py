"""A small residual CNN and how it is trained."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

CLASSES = 10


class Residual(nn.Module):
    """Two convolutions and a way around them; the shape of ``(N, channels, H, W)`` is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_bn(channels, channels),
            nn.ReLU(),
            *_conv_bn(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class MnistCnn(LightningModule):
    """Classifies images of shape ``(N, 1, 28, 28)``; ``forward`` gives logits of shape ``(N, 10)``.

    Args:
        width: channels of the first convolution; the last ones have four times as many.
        lr: peak learning rate of the one-cycle schedule.
        weight_decay: of AdamW.
    """

    def __init__(self, width: int = 32, lr: float = 3e-3, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = nn.Sequential(
            *_conv_bn(1, width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            *_conv_bn(width, 2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            *_conv_bn(2 * width, 4 * width),
            nn.ReLU(),
            Residual(4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, CLASSES),
        )
        self.val_acc = MulticlassAccuracy(CLASSES, average="micro")
        self.test_acc = MulticlassAccuracy(CLASSES, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(_shifted(images)), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.val_acc(logits, labels)
        self.log("val/loss", F.cross_entropy(logits, labels))
        self.log("val/acc", self.val_acc, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.test_acc(logits, labels)
        self.log("test/loss", F.cross_entropy(logits, labels))
        self.log("test/acc", self.test_acc)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _shifted(images: Tensor) -> Tensor:
    """Move a batch by up to two pixels; the digits have a margin of four, so nothing is lost over the edge."""
    rows, columns = torch.randint(-2, 3, (2,)).tolist()
    return images.roll((rows, columns), dims=(2, 3))


def _conv_bn(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
