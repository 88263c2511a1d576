"""The models whose speed is compared and the seeded data that they run on: nothing here is downloaded."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.sequence_models import BertEncoder, Conformer, Recurrent, Tcn
from benchmarks.vision_models import MobileNetV2, MobileNetV3, ResNet18, UNet, ViTTiny

SEED = 20
CALIBRATION_SAMPLES = 32
CALIBRATION_BATCH = 8
HELD_OUT_SAMPLES = 16

Samples = Callable[[int, torch.Generator], Tensor]


def images(samples: int, generator: torch.Generator, size: int = 224) -> Tensor:
    """Smooth shapes plus noise, about zero mean and unit variance: more like photographs than white noise is."""
    shapes = torch.randn(samples, 3, 14, 14, generator=generator)
    noise = torch.randn(samples, 3, size, size, generator=generator)
    return 1.3 * F.interpolate(shapes, size=size, mode="bilinear") + 0.2 * noise


def small_images(samples: int, generator: torch.Generator) -> Tensor:
    """The same at 128x128."""
    return images(samples, generator, size=128)


def token_ids(length: int) -> Samples:
    """Texts of so many tokens."""
    return lambda samples, generator: torch.randint(8192, (samples, length), generator=generator)


def spectrograms(samples: int, generator: torch.Generator) -> Tensor:
    """Four seconds as 400 frames of 80 bands; neighbouring bands are similar."""
    return F.avg_pool1d(torch.randn(samples, 400, 84, generator=generator), 5, stride=1) * 5**0.5


def series(*shape: int) -> Samples:
    """Standard normal values."""
    return lambda samples, generator: torch.randn(samples, *shape, generator=generator)


def settled(model: nn.Module, samples: Samples, batch_size: int = 16) -> nn.Module:
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


def mlp() -> nn.Module:
    """Four linear layers of width 1024."""
    return nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(1024, 1024), nn.ReLU())))


@dataclass(frozen=True)
class ReferenceModel:
    """A model of the benchmark.

    Args:
        label: as tables name it.
        build: makes the module.
        samples: makes its inputs.
        attention: whether it is a transformer, for which some tools have settings of their own.
        recurrent: whether peers need the TorchScript exporter, which keeps LSTM and GRU whole.
        dynamic: whether dynamic INT8 is compared too; it is of no use to convolutions.
        settles: whether BatchNorm needs statistics of the data.
    """

    label: str
    build: Callable[[], nn.Module]
    samples: Samples
    attention: bool = False
    recurrent: bool = False
    dynamic: bool = False
    settles: bool = False

    def seeded(self) -> nn.Module:
        """The model in eval mode, the same weights on every call."""
        torch.manual_seed(SEED)
        model = self.build()
        return (settled(model, self.samples) if self.settles else model).eval()

    def calibration(self, batch_size: int = CALIBRATION_BATCH) -> list[Tensor]:
        """The calibration samples, the same for every calibrator, in batches."""
        generator = torch.Generator().manual_seed(SEED + 1)
        return list(self.samples(CALIBRATION_SAMPLES, generator).split(batch_size))

    def held_out(self) -> Tensor:
        """Samples that no calibrator has seen; the first ones are the input that is timed."""
        return self.samples(HELD_OUT_SAMPLES, torch.Generator().manual_seed(SEED + 2))


def transformer(label: str, build: Callable[[], nn.Module], samples: Samples, settles: bool = False) -> ReferenceModel:
    return ReferenceModel(label, build, samples, attention=True, dynamic=True, settles=settles)


def convolutional(label: str, build: Callable[[], nn.Module], samples: Samples) -> ReferenceModel:
    return ReferenceModel(label, build, samples, settles=True)


def recurrent(label: str, layer: type[nn.RNNBase]) -> ReferenceModel:
    return ReferenceModel(label, lambda: Recurrent(layer), series(64, 64), recurrent=True, dynamic=True)


MODELS: dict[str, ReferenceModel] = {
    "mlp": ReferenceModel("MLP, 4 × 1024", mlp, series(1024), dynamic=True),
    "resnet18": convolutional("ResNet-18, 224²", ResNet18, images),
    "mobilenet_v2": convolutional("MobileNetV2, 224²", MobileNetV2, images),
    "mobilenet_v3": convolutional("MobileNetV3-Small, 224²", MobileNetV3, images),
    "mobile_same": convolutional("MobileNetV2, “same” padding", lambda: MobileNetV2(same=True), images),
    "vit_tiny": transformer("ViT-tiny, 224²", ViTTiny, images),
    "bert_32": transformer("BERT-style encoder, 32 tokens", lambda: BertEncoder(32), token_ids(32)),
    "bert_128": transformer("BERT-style encoder, 128 tokens", lambda: BertEncoder(128), token_ids(128)),
    "bert_512": transformer("BERT-style encoder, 512 tokens", lambda: BertEncoder(512), token_ids(512)),
    "conformer": transformer("Conformer, 400 frames", Conformer, spectrograms, settles=True),
    "unet": convolutional("U-Net, 128²", UNet, small_images),
    "tcn": convolutional("TCN, 512 steps", Tcn, series(32, 512)),
    "lstm": recurrent("LSTM, 2 × 512, 64 steps", nn.LSTM),
    "gru": recurrent("GRU, 2 × 512, 64 steps", nn.GRU),
}
