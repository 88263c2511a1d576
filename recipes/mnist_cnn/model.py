"""A small residual CNN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..mnist import CLASSES, MnistClassifier


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


class MnistCnn(MnistClassifier):
    """Classifies images of shape ``(N, 1, 28, 28)``; ``forward`` gives logits of shape ``(N, 10)``.

    Args:
        width: channels of the first convolution; the last ones have four times as many.
        lr: peak learning rate of the one-cycle schedule.
        weight_decay: of AdamW.
    """

    def __init__(self, width: int = 32, lr: float = 3e-3, weight_decay: float = 0.01) -> None:
        super().__init__(lr, weight_decay)
        self.save_hyperparameters()
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

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def _conv_bn(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
