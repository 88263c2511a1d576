"""Files in MNIST's format, for data that come as such."""

from __future__ import annotations

import gzip
from pathlib import Path

import torch
from torch import Tensor


def write_images(folder: Path, train: int, test: int) -> Path:
    """Write gray pictures of 28 by 28 with labels of ten classes, and return the folder."""
    for name, count in (("train", train), ("t10k", test)):
        pixels = torch.arange(count * 28 * 28).remainder(256).to(torch.uint8).view(count, 28, 28)
        _write(folder, f"{name}-images-idx3", pixels)
        _write(folder, f"{name}-labels-idx1", torch.arange(count).remainder(10).to(torch.uint8))
    return folder


def _write(folder: Path, name: str, values: Tensor) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = b"\0\0\x08" + bytes([values.dim()]) + sizes + values.numpy().tobytes()
    (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(content))
