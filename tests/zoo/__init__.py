"""Small versions of the models that must survive static quantization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from zoo import sequences, structures, vision
from zoo.pictures import images

Batch = Tensor | tuple[Any, ...] | dict[str, Any]


def vectors(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _two_inputs(generator: Generator, samples: int) -> Batch:
    table = {
        "kind": torch.randint(10, (samples,), generator=generator),
        "numbers": vectors(generator, samples, 4),
    }
    return (images(generator, samples), table)


def _masked(generator: Generator, samples: int) -> Batch:
    lengths = torch.randint(4, 13, (samples, 1), generator=generator)
    return {"x": vectors(generator, samples, 12, 32), "mask": torch.arange(12) < lengths}


@dataclass(frozen=True)
class Specimen:
    """A model, its inputs, and what quantization must make of it.

    Args:
        build: makes the model with random weights.
        batch: draws a batch of inputs.
        quantized: how many operators of each type are quantized, unless a runtime has no INT8 kernel for them.
        sqnr: least signal-to-noise ratio of its outputs against FP32, in decibels.
        distinct: whether no two of its layers are equal, and no BatchNorm only shifts.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[Generator, int], Batch]
    quantized: dict[str, int]
    sqnr: float
    distinct: bool = True


ZOO: dict[str, Specimen] = {
    "resnet": Specimen(
        vision.ResNet, images, {"conv2d": 6, "max_pool2d": 1, "add": 2, "adaptive_avg_pool2d": 1, "linear": 1}, 28
    ),
    "preactivation_resnet": Specimen(
        vision.PreActivationResNet, images, {"conv2d": 5, "add": 2, "mean": 1, "linear": 1}, 38
    ),
    "mobilenet": Specimen(
        vision.MobileNet,
        images,
        {"conv2d": 11, "adaptive_avg_pool2d": 2, "mul": 2, "add": 2, "mean": 1, "linear": 1},
        38,
    ),
    "unet": Specimen(vision.UNet, images, {"conv2d": 11, "max_pool2d": 2, "conv_transpose2d": 2, "cat": 2}, 28),
    "same_padding": Specimen(vision.SamePaddedMobileNet, images, {"conv2d": 7, "add": 1, "mean": 1, "linear": 1}, 42),
    "wavenet": Specimen(
        vision.GatedWaveNet,
        lambda g, n: vectors(g, n, 2, 64),
        {"conv1d": 4, "mul": 1, "add": 1, "avg_pool1d": 1, "conv_transpose1d": 1},
        24,
    ),
    "video": Specimen(
        vision.VideoNet,
        lambda g, n: vectors(g, n, 1, 8, 8, 8),
        {"conv3d": 3, "max_pool3d": 1, "conv_transpose3d": 1, "avg_pool3d": 1},
        40,
    ),
    "subclassed": Specimen(vision.Subclassed, images, {"conv2d": 4}, 32),
    "reparametrized": Specimen(vision.Reparametrized, images, {"conv2d": 1, "mean": 1, "linear": 1}, 34),
    "encoder": Specimen(sequences.Encoder, lambda g, n: vectors(g, n, 12, 32), {"linear": 7}, 30),
    "decoder": Specimen(
        sequences.Decoder, lambda g, n: (vectors(g, n, 6, 32), vectors(g, n, 9, 32)), {"linear": 11}, 30
    ),
    "vit": Specimen(sequences.VisionTransformer, images, {"conv2d": 1, "linear": 13}, 32),
    "conformer": Specimen(sequences.Conformer, lambda g, n: vectors(g, n, 12, 32), {"linear": 9, "conv1d": 3}, 35),
    "tied": Specimen(
        sequences.TiedLanguageModel,
        lambda g, n: torch.randint(200, (n, 12), generator=g),
        {"embedding": 2, "linear": 3},
        30,
    ),
    "attention": Specimen(sequences.HandmadeAttention, _masked, {"linear": 2, "matmul": 1, "bmm": 1}, 30),
    "mlp": Specimen(sequences.NormalizedMlp, lambda g, n: vectors(g, n, 16), {"linear": 3}, 28),
    "two_inputs": Specimen(
        structures.TwoInputs, _two_inputs, {"embedding": 1, "conv2d": 1, "adaptive_avg_pool2d": 1, "linear": 2}, 33
    ),
    "called_twice": Specimen(
        structures.CalledTwice,
        lambda g, n: (images(g, n), images(g, n)),
        {"conv2d": 2, "adaptive_avg_pool2d": 2, "linear": 2},
        29,
    ),
    "equal_layers": Specimen(
        structures.EqualLayers, lambda g, n: vectors(g, n, 12, 32), {"linear": 5}, 32, distinct=False
    ),
    "ranks": Specimen(
        structures.Ranks, images, {"conv2d": 1, "conv_transpose2d": 1, "conv1d": 1, "linear": 1, "mean": 2}, 42
    ),
    "blocks": Specimen(structures.Blocks, images, {"conv2d": 2, "add": 1, "linear": 1}, 34),
    "integer_output": Specimen(
        structures.IntegerOutput, lambda g, n: (vectors(g, n, 16), vectors(g, n)), {"linear": 2}, 40
    ),
    "matrices": Specimen(structures.ConstantMatrices, lambda g, n: vectors(g, n, 16), {"addmm": 1, "matmul": 1}, 30),
}


def settled(specimen: Specimen, seed: int = 0) -> nn.Module:
    """Build a model whose BatchNorm statistics are those of its inputs, in eval mode; the global RNG is left alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = specimen.build().train()
        for parameter in model.parameters() if specimen.distinct else ():
            parameter.add_(0.2 * parameter.abs().mean() * torch.randn_like(parameter))
        for _ in range(10):
            forward(model, specimen.batch(generator, 16))
    return model.eval()


def forward(model: nn.Module, batch: Batch) -> Any:
    """Call a model with a batch: a dict is keyword arguments, a tuple positional ones."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)
