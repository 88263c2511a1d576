"""A small mobile CNN whose channels can be made uneven."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lq_plugin.errors import ConfigError, unknown_name

from ..mnist import CLASSES, MnistClassifier
from ..uneven import make_uneven, powers_of_two

ACTIVATIONS = ("relu", "relu6")


class Activation(nn.Module):
    """ReLU, or ReLU6 for channels that were multiplied by factors: each channel has its own clamp limit."""

    limits: Tensor

    def __init__(self, kind: str, factors: Tensor) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("limits", 6 * factors.view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.kind == "relu" else torch.minimum(F.relu(x), self.limits)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (M. Sandler et al., MobileNetV2, 2018), with a skip connection if shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, kind: str, factors: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        hidden = len(factors[0])
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(hidden), nn.BatchNorm2d(hidden), nn.BatchNorm2d(outputs)])
        self.activations = nn.ModuleList(Activation(kind, each) for each in factors)
        self.around = stride == 1 and inputs == outputs
        make_uneven(self.norms[0], self.depthwise, factors[0])
        make_uneven(self.norms[1], self.project, factors[1])

    def forward(self, x: Tensor) -> Tensor:
        y = self.activations[0](self.norms[0](self.expand(x)))
        y = self.activations[1](self.norms[1](self.depthwise(y)))
        y = self.norms[2](self.project(y))
        return x + y if self.around else y  # type: ignore[no-any-return]


class MobileCnn(MnistClassifier):
    """Classifies images of shape ``(N, 1, 32, 32)``; ``forward`` gives logits of shape ``(N, 10)``.

    Args:
        width: channels of the first convolution; the last blocks have four times as many.
        activation: ``"relu6"`` or ``"relu"``, inside the blocks.
        uneven: channels inside the blocks are multiplied by random powers of two, from ``2 ** -uneven`` to
            ``2 ** uneven``, and divided by them in the next layer. Training and FP32 results are the same for every
            value, bit for bit; 0 gives the usual network.
        lr: peak learning rate of the one-cycle schedule.
        weight_decay: of AdamW.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        width: int = 16,
        activation: str = "relu6",
        uneven: int = 5,
        lr: float = 1e-2,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(lr, weight_decay)
        if activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)
        if not 0 <= uneven <= 16:
            raise ConfigError(f"uneven: {uneven} is out of range. Allowed: 0 to 16.")
        self.save_hyperparameters()
        generator = torch.Generator().manual_seed(0)

        def block(inputs: int, outputs: int, stride: int) -> InvertedResidual:
            factors = tuple(powers_of_two(4 * inputs, uneven, generator) for _ in range(2))
            return InvertedResidual(inputs, outputs, stride, activation, (factors[0], factors[1]))

        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            block(width, width, 1),
            block(width, 2 * width, 2),
            block(2 * width, 2 * width, 1),
            block(2 * width, 4 * width, 2),
            block(4 * width, 4 * width, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]
