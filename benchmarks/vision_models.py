"""Published networks for images, with random weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection (He et al., 2015, arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet18(nn.Module):
    """The usual ResNet-18 for 224x224 images and 1000 classes."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        self.layers = nn.Sequential(
            *(nn.Sequential(BasicBlock(i, o, stride), BasicBlock(o, o, 1)) for i, o, stride in widths)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.layers(self.stem(x))), 1))


class ConvReLU6(nn.Module):
    """A convolution, BatchNorm and ReLU6.

    With TensorFlow's "same" padding, there is more of it on the right and below, in an operator of its own.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, same: bool, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        total = kernel - stride
        self.pad = (total // 2, total - total // 2) * 2 if same else (0,) * 4
        padding = 0 if same else kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.bn(self.conv(F.pad(x, self.pad) if any(self.pad) else x)))


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project (Sandler et al., 2018, arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int, same: bool) -> None:
        super().__init__()
        wide = inputs * expand
        self.expand = ConvReLU6(inputs, wide, 1, same) if expand > 1 else nn.Identity()
        self.depthwise = ConvReLU6(wide, wide, 3, same, stride, groups=wide)
        self.project = nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 for 224x224 images; with ``same`` padding as in networks that come from TensorFlow."""

    def __init__(self, same: bool = False) -> None:
        super().__init__()
        blocks: list[nn.Module] = [ConvReLU6(3, 32, 3, same, stride=2)]
        width = 32
        for expand, outputs, repeats, stride in [
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ]:
            for turn in range(repeats):
                blocks.append(InvertedResidual(width, outputs, stride if turn == 0 else 1, expand, same))
                width = outputs
        self.features = nn.Sequential(*blocks, ConvReLU6(320, 1280, 1, same))
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Weigh channels by what the whole image holds (Hu et al., 2017, arXiv:1709.01507)."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, squeezed, 1)
        self.grow = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.grow(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int, groups: int, activation: nn.Module) -> nn.Sequential:
    """A convolution with BatchNorm and an activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=0.001), activation)


class MobileNetV3Block(nn.Module):
    """Expand, depthwise convolution, squeeze and excite, project."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, wide: int, excite: bool, activation: nn.Module
    ) -> None:
        super().__init__()
        expand = [conv_bn(inputs, wide, 1, 1, 1, activation)] if wide != inputs else []
        squeezed = max(8, (wide // 4 + 4) // 8 * 8)
        self.layers = nn.Sequential(
            *expand,
            conv_bn(wide, wide, kernel, stride, wide, activation),
            SqueezeExcite(wide, squeezed) if excite else nn.Identity(),
            conv_bn(wide, outputs, 1, 1, 1, nn.Identity()),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV3(nn.Module):
    """MobileNetV3-Small for 224x224 images and 1000 classes (Howard et al., 2019, arXiv:1905.02244)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        blocks: list[nn.Module] = [conv_bn(3, 16, 3, 2, 1, nn.Hardswish())]
        inputs = 16
        for kernel, wide, outputs, excite, activation, stride in [
            (3, 16, 16, True, nn.ReLU(), 2),
            (3, 72, 24, False, nn.ReLU(), 2),
            (3, 88, 24, False, nn.ReLU(), 1),
            (5, 96, 40, True, nn.Hardswish(), 2),
            (5, 240, 40, True, nn.Hardswish(), 1),
            (5, 240, 40, True, nn.Hardswish(), 1),
            (5, 120, 48, True, nn.Hardswish(), 1),
            (5, 144, 48, True, nn.Hardswish(), 1),
            (5, 288, 96, True, nn.Hardswish(), 2),
            (5, 576, 96, True, nn.Hardswish(), 1),
            (5, 576, 96, True, nn.Hardswish(), 1),
        ]:
            blocks.append(MobileNetV3Block(inputs, outputs, kernel, stride, wide, excite, activation))
            inputs = outputs
        self.features = nn.Sequential(*blocks, conv_bn(96, 576, 1, 1, 1, nn.Hardswish()))
        self.classifier = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net with transposed convolutions for 128x128 images (Ronneberger et al., 2015, arXiv:1505.04597)."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256), classes: int = 4) -> None:
        super().__init__()
        self.down = nn.ModuleList(double_conv(i, o) for i, o in zip((3, *widths), widths, strict=False))
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in steps)
        self.up = nn.ModuleList(double_conv(2 * o, o) for _, o in steps)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for block in self.down[:-1]:
            skipped.append(x := block(x))
            x = self.pool(x)
        x = self.down[-1](x)
        for grow, block, skip in zip(self.grow, self.up, reversed(skipped), strict=True):
            x = block(torch.cat([skip, grow(x)], 1))
        return self.head(x)


class ViTTiny(nn.Module):
    """ViT-tiny: 16x16 patches of a 224x224 image, width 192 (arXiv:2012.12877)."""

    def __init__(self, layers: int = 12, width: int = 192) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, stride=16)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 197, width))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 3, 4 * width, activation="gelu", batch_first=True, norm_first=True)
                for _ in range(layers)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.fc(self.norm(self.layers(x))[:, 0])
