"""LightningModules that differ in where their layers are."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from zoo import vision
from zoo.pictures import images


class _Classifier(L.LightningModule):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class LayersOnTheModule(_Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = vision.ScaledConv2d(16, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(x)))))
        return self.head(x.mean((2, 3)))


class LayersUnderNet(_Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.net = vision.ResNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def loader(samples: int = 64, batch_size: int = 16) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(10, (samples,), generator=generator)
    return DataLoader(TensorDataset(images(generator, samples), labels), batch_size)
