"""Convolutional networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class ReusedReluBlock(nn.Module):
    """ResNet's basic block: one in-place ReLU module serves twice."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


class ResNet(nn.Module):
    """7 convolutions, 2 residual adds, max and average pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.layers = nn.Sequential(ReusedReluBlock(16, 16, 1), ReusedReluBlock(16, 32, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.layers(self.stem(x))), 1))


class PreActivationResNet(nn.Module):
    """BatchNorm and ReLU come before each convolution, so no BatchNorm can be folded into the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(4))
        self.last = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index in (0, 2):
            y = self.convs[index](F.relu(self.norms[index](x)))
            x = x + self.convs[index + 1](F.relu(self.norms[index + 1](y)))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, width // 4, 1)
        self.expand = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return F.hardsigmoid(self.expand(scale)) * x


class MobileBlock(nn.Module):
    """MobileNet's inverted residual: expand, depthwise, squeeze-excite, project."""

    def __init__(self, width: int, expanded: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, expanded, 1, bias=False), nn.BatchNorm2d(expanded), activation())
        self.depthwise = nn.Sequential(
            nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
            activation(),
        )
        self.excite = SqueezeExcite(expanded)
        self.project = nn.Sequential(nn.Conv2d(expanded, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.excite(self.depthwise(self.expand(x))))


class MobileNet(nn.Module):
    """A stem and two inverted residuals: ReLU6 in the first, hardswish in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential(MobileBlock(16, 48, nn.ReLU6), MobileBlock(16, 48, nn.Hardswish))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean([2, 3]))


class SamePadded(nn.Module):
    """A convolution that pads like TensorFlow: with a stride, one more zero below and on the right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.less, self.more = (kernel - stride) // 2, (kernel - stride + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.pad(x, [self.less, self.more, self.less, self.more])))


class SamePaddedMobileNet(nn.Module):
    """A mobile CNN with "same" padding, like models that come from TensorFlow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(SamePadded(3, 16, 3, stride=2), nn.ReLU6())
        self.down = nn.Sequential(
            nn.Conv2d(16, 48, 1),
            nn.ReLU6(),
            SamePadded(48, 48, 3, stride=2, groups=48),
            nn.ReLU6(),
            nn.Conv2d(48, 16, 1),
        )
        self.block = nn.Sequential(
            nn.Conv2d(16, 48, 1), nn.ReLU6(), SamePadded(48, 48, 5, groups=48), nn.ReLU6(), nn.Conv2d(48, 16, 1)
        )
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        return self.fc((x + self.block(x)).mean((2, 3)))


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Two levels down and up, by transposed convolutions, with skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _twice(3, 16), _twice(16, 32), _twice(32, 64)
        self.pool = nn.MaxPool2d(2)
        self.up2 = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.merge2 = _twice(64, 32)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.merge1 = _twice(32, 16)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(self.pool(first))
        x = self.bottom(self.pool(second))
        x = self.merge2(torch.cat([self.up2(x), second], dim=1))
        return self.head(self.merge1(torch.cat([self.up1(x), first], dim=1)))


class GatedWaveNet(nn.Module):
    """1-D convolutions: dilated, grouped, a tanh-sigmoid gate, a transposed convolution back to the input's length."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 32, 5, stride=2, padding=2), nn.BatchNorm1d(32), nn.ReLU())
        self.filter = nn.Conv1d(32, 32, 3, padding="same", dilation=2)
        self.gate = nn.Conv1d(32, 32, 3, padding="same", dilation=2, groups=4)
        self.pool = nn.AvgPool1d(2)
        self.up = nn.Sequential(nn.ConvTranspose1d(32, 16, 4, stride=4, groups=2), nn.BatchNorm1d(16))
        self.head = nn.Conv1d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))
        return self.head(F.leaky_relu(self.up(self.pool(x)), 0.1))


class VideoNet(nn.Module):
    """3-D convolutions, plain and transposed, and 3-D pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU())
        self.pool = nn.MaxPool3d(2)
        self.conv2 = nn.Sequential(nn.Conv3d(16, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU())
        self.up = nn.ConvTranspose3d(16, 8, 2, stride=2)
        self.average = nn.AvgPool3d(2)
        self.head = nn.Conv3d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.average(self.up(self.conv2(self.pool(self.conv1(x))))))


class ScaledConv2d(nn.Conv2d):
    """A subclass of nn.Conv2d with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5 + 1.0


class Subclassed(nn.Module):
    """A subclass of nn.Conv2d, dilation, grouped channels, padding='same', nearest upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = ScaledConv2d(3, 16, 3, padding=1)
        self.dilated = nn.Conv2d(16, 16, 3, padding="same", dilation=2)
        self.grouped = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=4)
        self.last = nn.Conv2d(32, 8, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.scaled(x))
        x = F.gelu(self.dilated(x))
        return self.last(F.interpolate(F.elu(self.grouped(x)), scale_factor=2))


class Reparametrized(nn.Module):
    """Weights that the forward computes: weight norm on a convolution, spectral norm on a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.norm = nn.BatchNorm2d(16)
        self.fc = parametrizations.spectral_norm(nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))
