"""The models and the seeded data that the benchmarks run: nothing here is downloaded."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sequence_models import Conformer, Encoder
from torch import Tensor, nn
from torch.nn import functional as F
from vision_models import MobileCnn, MobileNetV3, ResNet18, UNet, ViTTiny

SEED = 20
CALIBRATION_SAMPLES = 32
HELD_OUT_BATCHES = 8


def images(samples: int, generator: torch.Generator, size: int = 224) -> Tensor:
    """Smooth shapes plus noise, about zero mean and unit variance: more like photographs than white noise is."""
    shapes = torch.randn(samples, 3, 14, 14, generator=generator)
    noise = torch.randn(samples, 3, size, size, generator=generator)
    return 1.3 * F.interpolate(shapes, size=size, mode="bilinear") + 0.2 * noise


def small_images(samples: int, generator: torch.Generator) -> Tensor:
    """The same at 128x128."""
    return images(samples, generator, size=128)


def tokens(samples: int, generator: torch.Generator) -> Tensor:
    """Embedded sequences of 128 tokens."""
    return torch.randn(samples, 128, 384, generator=generator)


def spectrograms(samples: int, generator: torch.Generator) -> Tensor:
    """Four seconds as 400 frames of 80 bands; neighbouring bands are similar."""
    return F.avg_pool1d(torch.randn(samples, 400, 84, generator=generator), 5, stride=1) * 5**0.5


def settled(model: nn.Module, samples: Callable[[int, torch.Generator], Tensor], batch_size: int = 16) -> nn.Module:
    """Make channels uneven and give BatchNorm statistics of the data, as training would."""
    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # a plain average over all batches seen
    with torch.no_grad():
        for _ in range(4):
            model.train()(samples(batch_size, generator))
    return model


@dataclass(frozen=True)
class ReferenceModel:
    """A model of the benchmark: how to build it, its inputs, and the batch size that is timed."""

    build: Callable[[], nn.Module]
    samples: Callable[[int, torch.Generator], Tensor]
    batch_size: int = 1
    attention: bool = False

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
    "resnet18": ReferenceModel(lambda: settled(ResNet18(), images), images),
    "mobile_cnn": ReferenceModel(lambda: settled(MobileCnn(), images), images),
    "mobilenet_v3": ReferenceModel(lambda: settled(MobileNetV3(), images), images),
    "unet": ReferenceModel(lambda: settled(UNet(), small_images), small_images),
    "vit_tiny": ReferenceModel(ViTTiny, images, attention=True),
    "conformer": ReferenceModel(lambda: settled(Conformer(), spectrograms), spectrograms, attention=True),
    "transformer": ReferenceModel(lambda: Encoder(equal=False), tokens, batch_size=8, attention=True),
    "transformer_equal": ReferenceModel(lambda: Encoder(equal=True), tokens, batch_size=8, attention=True),
}
