"""The models whose accuracy is compared, each trained for seconds, and the data that they and the calibrators see.

With random weights SQNR says little: channels are alike, outputs have no margin. Images are Fashion-MNIST at 32×32,
from the recipe's data module; text is the language reference that every Python brings along.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from benchmarks.reference_models import SEED
from benchmarks.sequence_models import ByteModel, TextEncoder
from benchmarks.vision_models import ResNet18, UNet
from lq_plugin.recipes.fashion_mobile.data import MEAN, STD, FashionData
from lq_plugin.recipes.fashion_mobile.model import MobileCnn
from lq_plugin.recipes.mnist_vit.model import MnistVit
from lq_plugin.recipes.mnist_vit_outliers.model import OutlierVit

CALIBRATION_SAMPLES = 256  # of them, our algorithms learn from 192 and are judged by 64
HELD_OUT_SAMPLES = 512
BATCH_SIZE = 32

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Inputs:
    """What calibrators get, and what nobody sees before the outputs are compared."""

    calibration: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class Task:
    """Samples and their targets by split: ``train``, ``calibration`` and ``held_out``."""

    samples: dict[str, Tensor]
    targets: dict[str, Tensor]

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.samples["calibration"].clone(), self.samples["held_out"].clone())


@dataclass(frozen=True)
class Training:
    """How a model is trained: AdamW with a one-cycle schedule."""

    task: Callable[[Path], Task]
    loss: Loss
    steps: int
    lr: float = 3e-3
    batch_size: int = 64


@dataclass(frozen=True)
class Subject:
    """A model of the comparison.

    Args:
        build: makes the module; with weights, where there is no training.
        training: how it is trained, or where its inputs come from.
        metric: ``agreement`` of decisions with FP32, of the classes in dimension 1, or mean ``cosine`` with it.
        schemes: what is compared: ``static``, ``dynamic``, or both.
        recurrent: whether peers need the TorchScript exporter, which keeps LSTM and GRU whole.
    """

    build: Callable[[], nn.Module]
    training: Training | Callable[[Path], Inputs]
    metric: str = "agreement"
    schemes: tuple[str, ...] = ("static",)
    recurrent: bool = False

    def prepared(self, data: Path) -> tuple[nn.Module, Inputs, dict[str, float]]:
        """The module in FP32, trained where it has to be; the inputs; how well it does its task."""
        torch.manual_seed(SEED)
        model = self.build()
        if not isinstance(self.training, Training):
            return model.eval(), self.training(data), {}
        task = self.training.task(data)
        began = time.process_time()
        train(model, task, self.training)
        seconds = time.process_time() - began
        model = plain(model).eval()
        with torch.inference_mode():
            held_out = task.samples["held_out"], task.targets["held_out"]
            loss = float(self.training.loss(model, *held_out))
        return model, task.inputs, {"training_seconds": round(seconds, 1), "held_out_loss": round(loss, 4)}

    def loaded(self, weights: Path) -> nn.Module:
        """The same module in another process."""
        model = plain(self.build()).eval()
        model.load_state_dict(torch.load(weights))
        return model


def train(model: nn.Module, task: Task, training: Training) -> None:
    """Train a model on seeded draws."""
    generator = torch.Generator().manual_seed(SEED)
    samples, targets = task.samples["train"], task.targets["train"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=training.steps)
    model.train()
    for _ in range(training.steps):
        drawn = torch.randint(len(samples), (training.batch_size,), generator=generator)
        optimizer.zero_grad()
        training.loss(model, samples[drawn], targets[drawn]).backward()
        optimizer.step()
        schedule.step()


def plain(model: nn.Module) -> nn.Module:
    """The model with each parametrization replaced by its result, as other tools want it."""
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return model


def classification(model: nn.Module, samples: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, of whole samples or of each pixel."""
    return F.cross_entropy(model(samples), targets)


def next_byte(model: nn.Module, samples: Tensor, _: Tensor) -> Tensor:
    """Cross entropy of each byte, given those before it."""
    assert isinstance(model, ByteModel)
    return F.cross_entropy(model.scores(samples[:, :-1]).transpose(1, 2), samples[:, 1:])


def masked_bytes(model: nn.Module, samples: Tensor, masked: Tensor) -> Tensor:
    """Cross entropy of the bytes that are masked (J. Devlin et al., BERT, 2018)."""
    assert isinstance(model, TextEncoder)
    scores = model.tokens(samples.masked_fill(masked, 0)) @ model.embedding.weight.T
    return F.cross_entropy(scores[masked], samples[masked])


def fashion(folder: Path, transform: Callable[[Tensor], Tensor]) -> Task:
    """Fashion-MNIST: calibrated on validation images, held out are test images."""
    data = FashionData(str(folder))
    data.setup("fit")
    sizes = {
        "train": ("train", None),
        "calibration": ("val", CALIBRATION_SAMPLES),
        "held_out": ("test", HELD_OUT_SAMPLES),
    }
    parts = {name: [t[:size] for t in data.splits[split].tensors] for name, (split, size) in sizes.items()}
    samples = {name: transform(images).contiguous() for name, (images, _) in parts.items()}
    return Task(samples, {name: labels for name, (_, labels) in parts.items()})


def small(folder: Path) -> Task:
    """Images of shape ``(N, 1, 28, 28)``, for the transformers of the MNIST recipes."""
    return fashion(folder, lambda images: images[..., 2:-2, 2:-2])


def grey(folder: Path) -> Task:
    """Images of shape ``(N, 1, 32, 32)``."""
    return fashion(folder, lambda images: images)


def coloured(folder: Path) -> Task:
    """Images of shape ``(N, 3, 32, 32)`` with three equal channels."""
    return fashion(folder, lambda images: images.expand(-1, 3, -1, -1))


GROUPS = torch.tensor([1, 2, 1, 1, 1, 3, 1, 3, 2, 3])  # of the ten kinds: tops, trousers and bags, shoes


def cluttered(folder: Path) -> Task:
    """Clothes on a cluttered background; the target is the group of the clothing at each pixel, 0 for none."""
    task = fashion(folder, lambda images: images)
    samples, targets = {}, {}
    for number, (name, images) in enumerate(task.samples.items()):
        worn = images * STD + MEAN > 0.1
        generator = torch.Generator().manual_seed(SEED + number)
        clutter = F.interpolate(torch.randn(len(images), 3, 8, 8, generator=generator), size=32, mode="bilinear")
        samples[name] = torch.where(worn, images, clutter)
        targets[name] = GROUPS[task.targets[name]].view(-1, 1, 1) * worn[:, 0]
    return Task(samples, targets)


def text(_: Path, length: int = 64) -> Task:
    """Windows of text as ASCII codes, ``(N, length)``, from three different parts; the targets say what is masked."""
    joined = "\n".join(topics[name] for name in sorted(topics))
    codes = torch.frombuffer(bytearray(joined.encode("ascii", "replace")), dtype=torch.uint8).long()
    cuts = [len(codes) * 8 // 10, len(codes) * 9 // 10]
    parts = dict(zip(("train", "calibration", "held_out"), codes.tensor_split(cuts), strict=True))
    sizes = {"train": 16384, "calibration": CALIBRATION_SAMPLES, "held_out": HELD_OUT_SAMPLES}
    generator = torch.Generator().manual_seed(SEED)
    samples, targets = {}, {}
    for name, part in parts.items():
        starts = torch.randint(len(part) - length, (sizes[name], 1), generator=generator)
        samples[name] = part[starts + torch.arange(length)]
        targets[name] = torch.rand(samples[name].shape, generator=generator) < 0.15
    return Task(samples, targets)


BOTH = ("static", "dynamic")
TRAINED: dict[str, Subject] = {
    "resnet18": Subject(lambda: ResNet18(classes=10), Training(coloured, classification, 60)),
    "mobile_cnn": Subject(lambda: MobileCnn(uneven=0), Training(grey, classification, 300, lr=1e-2)),
    "mobile_cnn_uneven": Subject(lambda: MobileCnn(uneven=5), Training(grey, classification, 300, lr=1e-2)),
    "unet": Subject(lambda: UNet((16, 32, 64, 128)), Training(cluttered, classification, 100)),
    "vit": Subject(MnistVit, Training(small, classification, 300, lr=2e-3), schemes=BOTH),
    "vit_outliers": Subject(OutlierVit, Training(small, classification, 300, lr=2e-3), schemes=BOTH),
    "encoder": Subject(TextEncoder, Training(text, masked_bytes, 150, lr=2e-3, batch_size=32), "cosine", BOTH),
    "lstm": Subject(lambda: ByteModel(nn.LSTM), Training(text, next_byte, 150, 1e-2, 32), schemes=BOTH, recurrent=True),
    "gru": Subject(
        lambda: ByteModel(nn.GRU), Training(text, next_byte, 150, 1e-2, 32), schemes=("dynamic",), recurrent=True
    ),
}
