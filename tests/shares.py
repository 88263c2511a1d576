"""A model and data for two processes that each have a share of their own, in one file that both can import."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from tiny import Images, Tiny, images, trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, Sampler

from lq_plugin import ArtifactExport, Int8Evaluation, StaticQuantization

MINUTE = timedelta(seconds=60)
# The batches of each process: how many samples, and how large the images are.
SHARES: dict[str, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {
    "second empty": ([(8, 8), (8, 8)], []),
    "first empty": ([], [(8, 8), (8, 8)]),
    "smaller batch": ([(8, 8), (8, 8)], [(1, 8)]),
    "sizes": ([(8, 8), (8, 8)], [(8, 8), (4, 10)]),
}


# How observers merge does not depend on the shares, so one case has all of them.
OBSERVERS = dict.fromkeys(SHARES, ("minmax",)) | {
    "smaller batch": ("minmax", "histogram", "percentile", "moving_average"),
    "second empty": ("minmax", "moving_average"),
}


class Mean(Tiny):
    """Takes images of any size; without buffers, which DDP would synchronize in each batch of all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def evaluate(self, split: str, batch: Any) -> None:
        self.log(f"{split}/loss", F.cross_entropy(self(batch[0]), batch[1]))


def batches(shares: Sequence[Sequence[tuple[int, int]]], rank: int) -> list[Tensor]:
    """The images of a process, the same ones at each call."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(samples, 1, side, side, generator=generator) for samples, side in shares[rank]]


class Shares(Images):
    """Validation data of which each process has a share; one process alone has all of it."""

    def __init__(self, shares: Sequence[Sequence[tuple[int, int]]]) -> None:
        super().__init__()
        self.shares = shares

    def val_dataloader(self) -> Any:
        return DataLoader(_Share(self.shares), batch_size=None)


class _Share(IterableDataset[Any]):
    def __init__(self, shares: Sequence[Sequence[tuple[int, int]]]) -> None:
        self.shares = shares

    def __iter__(self) -> Any:
        alone = not torch.distributed.is_initialized()
        for rank in range(2) if alone else (torch.distributed.get_rank(),):
            yield from ((x, torch.zeros(len(x), dtype=torch.int64)) for x in batches(self.shares, rank))


class Own(Sampler[int]):
    """Takes every third sample, backwards."""

    def __init__(self, data: Sized) -> None:
        self.order = range(len(data) - 1, -1, -3)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class Sampled(Images):
    """Validation data with a sampler, and without the last batch, which is smaller."""

    def val_dataloader(self) -> Any:
        data = images(300, 2)
        return DataLoader(data, 8, sampler=Own(data), drop_last=True)


def with_everything() -> list[Any]:
    """Callbacks that calibrate, run algorithms, export and evaluate."""
    evaluation = Int8Evaluation(["validate"], latency=None)
    return [StaticQuantization("made", observer="minmax"), ArtifactExport(["onnx"]), evaluation]


def fit_of(folder: Path, model: Any, data: Any, *callbacks: Any, timeout: timedelta = MINUTE, **options: Any) -> None:
    """Train as one of two processes, which give each other so much time."""
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timeout)
    made = trainer(folder, *callbacks, devices=2, strategy=strategy, **{"enable_checkpointing": False, **options})
    made.fit(model, datamodule=data)
