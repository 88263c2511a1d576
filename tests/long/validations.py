"""Hundreds of observed validations leave memory, descriptors and threads as they were; run by ``make test-long``."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

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
    watching, static = Watching(), StaticQuantization(algorithms=["ranges", "sequential"])
    budget = Budget("val/loss", 0.0, relative=False, mode="min")
    evaluation = Int8Evaluation(latency=None, budget=budget, search=Search(max_trials=1))
    callbacks = [static, DynamicQuantization(), ArtifactExport(["pt2"]), evaluation, watching]
    data = Images(samples=8 * VALIDATIONS, val_samples=64)
    fit(tmp_path, Tiny(), *callbacks, data=data, val_check_interval=1, enable_checkpointing=False)
    assert len(watching.seen) >= VALIDATIONS
    memory, descriptors, threads = zip(*watching.seen[SETTLED:], strict=True)
    shown = ", ".join(f"{watching.seen[each - 1][0] >> 20} MiB after {each}" for each in range(50, VALIDATIONS + 1, 50))
    print(f"\n{shown}; {descriptors[-1]} descriptors, {threads[-1]} threads")
    assert max(memory) - memory[0] < MOST_GROWTH
    assert len(set(descriptors)) == len(set(threads)) == 1
    assert static.calibration is not None
    assert static.calibration.provenance.samples == 64
    assert evaluation.manifest is not None
    assert [step.outcome for step in evaluation.manifest.steps if step.outcome == "not_tried"] == []
