"""Fashion-MNIST from IDX files on disk, at 32×32."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from lq_plugin.errors import ConfigError

from ..splits import InMemory

FOLDER = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist
SPLITS = {"train": 20000, "val": 2000, "test": 10000}
SPLIT_SEED = 0
MEAN, STD = 0.2860, 0.3530
_MARGIN = 2  # from 28 to 32 pixels


class FashionData(InMemory):
    """Fashion-MNIST: normalized tensors of shape ``(N, 1, 32, 32)`` and labels.

    Training and validation images are drawn from the 60,000 training images, the same for every seed; the test images
    are the data set's own.

    Args:
        folder: the folder with the data set's four IDX files, compressed (``.gz``) or not.
        batch_size: images in a batch, for every split.
        samples: how many images of each split to keep, for a quick test; all of them by default.

    Raises:
        ConfigError: an option is out of range, or a file is missing.
    """

    def __init__(self, folder: str = FOLDER, batch_size: int = 128, samples: int | None = None) -> None:
        super().__init__(batch_size, samples)
        self.folder = Path(folder)

    def setup(self, stage: str) -> None:
        """Read the images on first use; later stages use them from memory."""
        if not self.splits:
            images, labels = (_read(self.folder, f"train-{kind}") for kind in ("images-idx3", "labels-idx1"))
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
            train, val = order[: SPLITS["train"]], order[-SPLITS["val"] :]
            parts = {"train": (images[train], labels[train]), "val": (images[val], labels[val])}
            parts["test"] = (_read(self.folder, "t10k-images-idx3"), _read(self.folder, "t10k-labels-idx1"))
            self.splits = {name: _prepared(*part, self.samples) for name, part in parts.items()}


def _prepared(images: Tensor, labels: Tensor, samples: int | None) -> TensorDataset:
    pixels = F.pad(images[:samples, None].float() / 255, (_MARGIN,) * 4)
    return TensorDataset((pixels - MEAN) / STD, labels[:samples].long())


def _read(folder: Path, name: str) -> Tensor:
    """Read an IDX file of bytes: two zeros, the type, the number of dimensions, each of them, and the bytes."""
    packed, plain = folder / f"{name}-ubyte.gz", folder / f"{name}-ubyte"
    if not packed.is_file() and not plain.is_file():
        raise ConfigError(
            f"folder: {folder} holds no {name}-ubyte or {name}-ubyte.gz. Install Debian's package "
            "dataset-fashion-mnist, or give the folder with the four IDX files of Fashion-MNIST."
        )
    content = gzip.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes()
    dims, start = content[3] if len(content) > 3 else 0, 4
    sizes = [int.from_bytes(content[start + 4 * n : start + 4 * n + 4], "big") for n in range(dims)]
    values = content[start + 4 * dims :]
    if content[:3] != b"\0\0\x08" or len(values) != math.prod(sizes):
        raise ConfigError(f"folder: {name}-ubyte in {folder} is not an IDX file of bytes. Get the file again.")
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(sizes)
