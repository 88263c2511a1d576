"""The models and the seeded data that the benchmarks run: nothing here is downloaded."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 20
CALIBRATION_SAMPLES = 32
HELD_OUT_BATCHES = 8


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
    """ResNet-18 for 224x224 images, 1000 classes; layer for layer the usual one."""

    def __init__(self) -> None:
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
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.layers(self.stem(x))), 1))


def images(samples: int, generator: torch.Generator) -> Tensor:
    """Smooth shapes plus noise, about zero mean and unit variance: nearer to photographs than white noise."""
    shapes = torch.randn(samples, 3, 14, 14, generator=generator)
    noise = torch.randn(samples, 3, 224, 224, generator=generator)
    return 1.3 * functional.interpolate(shapes, size=224, mode="bilinear") + 0.2 * noise


def tokens(samples: int, generator: torch.Generator) -> Tensor:
    """Embedded sequences of 128 tokens."""
    return torch.randn(samples, 128, 384, generator=generator)


def build_resnet18() -> nn.Module:
    """ResNet-18 with random weights, uneven channels, and BatchNorm statistics taken from data."""
    model = ResNet18()
    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # a plain average over all batches seen
    with torch.no_grad():
        for _ in range(4):
            model.train()(images(16, generator))
    return model


def build_transformer() -> nn.Module:
    """Six encoder layers, width 384, 6 heads, feed-forward 1536."""
    layer = nn.TransformerEncoderLayer(384, 6, 1536, activation="gelu", batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=6, enable_nested_tensor=False)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # the encoder copies one layer six times: give each copy weights of its own
            nn.init.xavier_normal_(parameter)
    return model


@dataclass(frozen=True)
class ReferenceModel:
    """A model of the benchmark: how to build it, its inputs, and the batch size that is timed."""

    build: Callable[[], nn.Module]
    samples: Callable[[int, torch.Generator], Tensor]
    batch_size: int

    def seeded(self) -> nn.Module:
        """The model in eval mode, the same weights on every call."""
        torch.manual_seed(SEED)
        return self.build().eval()

    def calibration(self, batch_size: int) -> list[Tensor]:
        """The calibration samples, the same for every calibrator, in batches of ``batch_size``."""
        generator = torch.Generator().manual_seed(SEED + 1)
        return list(self.samples(CALIBRATION_SAMPLES, generator).split(batch_size))

    def held_out(self) -> list[Tensor]:
        """Batches that no calibrator has seen; the first one is the input that is timed."""
        generator = torch.Generator().manual_seed(SEED + 2)
        return list(self.samples(HELD_OUT_BATCHES * self.batch_size, generator).split(self.batch_size))


MODELS: dict[str, ReferenceModel] = {
    "resnet18": ReferenceModel(build_resnet18, images, batch_size=1),
    "transformer": ReferenceModel(build_transformer, tokens, batch_size=8),
}
