"""Hundreds of observed validations leave memory, descriptors and threads as they were; run by ``make test-long``."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from tiny import Images, Tiny, fit

from lq_plugin import ArtifactExport, Budget, DynamicQuantization, Int8Evaluation, Search, StaticQuantization

VALIDATIONS, SETTLED = 400, 100
MOST_GROWTH = 16 << 20  # bytes; a leak of one graph in each validation would be ten times that


class Watching(Callback):
    """Takes the measure of this process after each validation."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(now())


def now() -> tuple[int, int, int]:
    """Bytes of memory, open descriptors, and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), threading.active_count()


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


CALIBRATED, FIRST = 200, 20


def test_nothing_grows_over_calibrations_with_algorithms_and_search(tmp_path: Path) -> None:
    """Each fit ends with a calibration, two algorithms, an export that is over the budget, and a search."""
    seen, trials = list[tuple[int, int, int]](), 0
    budget, search = Budget("val/loss", 0.0, relative=False, mode="min"), Search(max_trials=1)
    for number in range(CALIBRATED):
        static = StaticQuantization(algorithms=["ranges", "sequential"])
        evaluation = Int8Evaluation(["validate"], latency=None, budget=budget, search=search)
        data = Images(samples=8, val_samples=64)
        torch.manual_seed(number)
        fit(tmp_path, Tiny(), static, ArtifactExport(["pt2"]), evaluation, data=data, enable_checkpointing=False)
        assert evaluation.manifest is not None
        assert len(evaluation.manifest.steps) == 2
        trials += len(evaluation.manifest.trials)
        seen.append(now())
    memory, descriptors, threads = zip(*seen[FIRST:], strict=True)
    print(f"\n{len(seen)} calibrated fits with {trials} trials: memory {memory[0] >> 20} → {memory[-1] >> 20} MiB")
    assert trials > 0
    assert max(memory) - memory[0] < MOST_GROWTH
    assert len(set(descriptors)) == len(set(threads)) == 1
