"""Hundreds of observed validations leave memory, descriptors and threads as they were; run by ``make test-long``."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from tiny import Images, Tiny, fit

from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, StaticQuantization

VALIDATIONS, SETTLED = 400, 100
MOST_GROWTH = 16 << 20  # bytes; a leak of one graph in each validation would be ten times that


class Watching(Callback):
    """Takes the measure of this process after each validation."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        descriptors = len(os.listdir("/proc/self/fd"))
        self.seen.append((pages * os.sysconf("SC_PAGE_SIZE"), descriptors, threading.active_count()))


def test_nothing_grows_over_hundreds_of_validations(tmp_path: Path) -> None:
    watching, static = Watching(), StaticQuantization()
    callbacks = [static, DynamicQuantization(), ArtifactExport(["pt2"]), Int8Evaluation(latency=None), watching]
    data = Images(samples=8 * VALIDATIONS)
    fit(tmp_path, Tiny(), *callbacks, data=data, val_check_interval=1, enable_checkpointing=False)
    assert len(watching.seen) >= VALIDATIONS
    memory, descriptors, threads = zip(*watching.seen[SETTLED:], strict=True)
    print(f"\n{len(watching.seen)} validations: memory {memory[0] >> 20} → {memory[-1] >> 20} MiB")
    assert max(memory) - memory[0] < MOST_GROWTH
    assert len(set(descriptors)) == len(set(threads)) == 1
    assert static.calibration is not None
    assert static.calibration.provenance.samples == 16
