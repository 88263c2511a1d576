"""A fit on a machine that has run out of something by the time training is over.

``python limited.py WHAT ROOM FOLDER``, used by callbacks/test_limits.py and long/limits.py.
"""

from __future__ import annotations

import json
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

import lq_plugin
from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, Latency, StaticQuantization
from lq_plugin.report import readme, run_page

DOCUMENTS = (readme.FILE, readme.SCRIPT, run_page.FILE)  # each is written where there is room


class Wide(Tiny):
    """Its largest tensor has so many bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        width = size // 256  # of 64 inputs, 4 bytes each
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, CLASSES))


def descriptors(room: int, folder: Path) -> None:
    limit(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + room)


def memory(room: int, folder: Path) -> None:
    limit(resource.RLIMIT_AS, int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + room)


def file_size(room: int, folder: Path) -> None:
    limit(resource.RLIMIT_FSIZE, room)


def disk(room: int, folder: Path) -> None:
    """Fill the disk that a folder is on, except for so many bytes."""
    with (folder / "filling").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize - room)


def no_folder(room: int, folder: Path) -> None:
    (folder / "quantized").write_text("in the way")


def limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


LIMITS: Mapping[str, Callable[[int, Path], None]] = {
    each.__name__: each for each in (descriptors, memory, file_size, disk, no_folder)
}


def outcomes(folder: Path, named: tuple[str, ...], stderr: str) -> list[str]:
    """The outcome of each artifact: all that is on disk is listed and whole, or it is said that nothing can be.

    Args:
        folder: that the fit wrote to.
        named: what the system says of the limit.
        stderr: of the fit.
    """
    place = folder / "quantized" / "manifest.json"
    files = {path for path in folder.rglob("*") if path.is_file() and path.name not in ("filling", *DOCUMENTS)}
    if not place.exists():
        assert any(name in stderr for name in named), stderr
        return ["none"]
    entries = json.loads(place.read_text())["artifacts"]
    made = [entry for entry in entries if entry["path"] is not None]
    assert files == {
        place,
        *(place.parent / entry["path"] / name for entry in made for name in (*entry["sha256"], "artifact.json")),
    }
    for entry in made:
        if entry["format"] == "pt2":
            assert lq_plugin.load(place.parent / entry["path"])
    for entry in entries:
        told = entry["status"] not in ("failed", "not_evaluated") or any(name in entry["error"] for name in named)
        assert told, entry["error"]
    return [entry["status"] for entry in entries]


class Limiting(Callback):
    def __init__(self, what: str, room: str, folder: Path) -> None:
        self.given = what, room, folder

    def on_train_end(self, *_: Any) -> None:
        what, room, folder = self.given
        if what in LIMITS:
            LIMITS[what](int(room), folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    what, room, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    ours = [StaticQuantization(algorithms=()), DynamicQuantization(algorithms=()), ArtifactExport(["pt2"])]
    evaluation = Int8Evaluation(latency=Latency(rounds=1, seconds=0.01) if what == "descriptors" else None)
    model = Wide(size=16 << 20 if what == "memory" else 1 << 18)
    fit(folder, model, *ours, evaluation, Limiting(what, room, folder), data=Images(), enable_checkpointing=False)
