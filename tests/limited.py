"""A fit on a machine that has run out of something by the time training is over; see callbacks/test_limits.py.

``python limited.py WHAT FOLDER``
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from tiny import CLASSES, Images, Tiny, fit
from torch import nn

from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, Latency, StaticQuantization

ROOM = 8 << 20  # bytes: less than a copy of the weights


class Wide(Tiny):
    """Has more weights than there is room for."""

    def __init__(self) -> None:
        super().__init__()
        width = 2 * ROOM // 64 // 4
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, CLASSES))


def few_descriptors(folder: Path) -> None:
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def no_memory(folder: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))


def full_disk(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def no_folder(folder: Path) -> None:
    (folder / "quantized").write_text("in the way")


LIMITS: Mapping[str, Callable[[Path], None]] = {
    limit.__name__: limit for limit in (few_descriptors, no_memory, full_disk, no_folder)
}


class Limiting(Callback):
    def __init__(self, what: str, folder: Path) -> None:
        self.limit = lambda: LIMITS[what](folder)

    def on_train_end(self, *_: Any) -> None:
        self.limit()


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    ours = [StaticQuantization(algorithms=()), DynamicQuantization(algorithms=()), ArtifactExport(["pt2"])]
    evaluation = Int8Evaluation(latency=Latency(rounds=1, seconds=0.01))
    fit(folder, Wide(), *ours, evaluation, Limiting(what, folder), data=Images(), enable_checkpointing=False)
    assert evaluation.manifest is not None
    print([(entry.label, entry.status, entry.error) for entry in evaluation.manifest.artifacts])
