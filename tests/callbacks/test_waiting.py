"""Waiting for the process that works at the end of fit, and what becomes of the others where one of them ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from processes import two_processes
from tiny import trainer

from lq_plugin.callbacks import ranks

# What a fit of two processes begins with; their process group gives up after 4 s.
FIT = """
import time
from datetime import timedelta
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from shares import Mean, Shares, fit_of
from lq_plugin import ArtifactExport, StaticQuantization
from lq_plugin.jobs import StaticJob


def fit(*callbacks):
    data, folder = Shares([[(8, 8)] * 2] * 2), Path(type(callbacks[0]).__name__)
    fit_of(folder, Mean(), data, *callbacks, timeout=timedelta(seconds=4), num_sanity_val_steps=0)
    print("ended well", flush=True)
"""

# In the first fit, process 1 comes 6 s late to the end of fit; in the second, process 0 works there for 6 s; in the
# third, it is killed while it works.
SLOW = """
class SlowJob(StaticJob):
    def candidate(self, store):
        time.sleep(6)
        return super().candidate(store)


class Late(Callback):
    def on_fit_end(self, trainer, pl_module):
        time.sleep(6 * rank)


class Slow(StaticQuantization):
    def job(self, source):
        return SlowJob(**vars(super().job(source)))


class Killed(StaticQuantization):
    def job(self, source):
        os.kill(os.getpid(), 9)


fit(Late(), StaticQuantization())
fit(Slow(algorithms=()), ArtifactExport(["pt2"]))
fit(Killed())
"""

ENDED = """
class Ending(Callback):
    def {hook}(self, trainer, pl_module, *_):
        if rank == 1:
            {ending}


fit(Ending(), StaticQuantization(algorithms=()), ArtifactExport(["pt2"]))
"""
KILLED = "os.kill(os.getpid(), 9)"
EARLY = "CalibrationError: strategy: a process of this fit ended, or did not come as far as this one in time"


def test_others_wait_beyond_the_process_groups_timeout_and_no_longer_than_the_worker_lives(tmp_path: Path) -> None:
    (worker, *_), (waiting, said, error) = two_processes(FIT + SLOW, tmp_path)
    assert said == "ended well\nended well\n", error
    assert (tmp_path / "Slow" / "quantized" / "static" / "pt2" / "artifact.json").is_file()
    assert (worker, waiting) == (-signal.SIGKILL, 1)
    assert "ExportError: process 0, which exports and evaluates when fit ends, or another process ended" in error


@pytest.mark.parametrize(
    ("hook", "ending", "code", "said"),
    [
        ("on_fit_start", KILLED, 1, EARLY),
        ("on_validation_batch_end", "raise ZeroDivisionError", 1, EARLY),
        ("on_fit_end", KILLED, 0, "another process of this fit ended early, while process 0 worked"),
    ],
)
def test_a_process_says_so_where_another_one_ends_and_its_own_work_is_kept(
    hook: str, ending: str, code: int, said: str, tmp_path: Path
) -> None:
    first, second = two_processes(FIT + ENDED.format(hook=hook, ending=ending), tmp_path)
    assert (first.code, second.code) == (code, -signal.SIGKILL if ending == KILLED else 1)
    assert said in first.stderr
    assert len(list(tmp_path.rglob("manifest.json"))) == (hook == "on_fit_end")


def test_alone_the_work_leaves_the_random_state_and_the_mode_and_raises_what_it_raises(tmp_path: Path) -> None:
    alone = trainer(tmp_path)
    ranks.meet(alone)
    before = torch.get_rng_state()
    seen = []

    def work() -> None:
        with torch.inference_mode(), ranks.on_one_process(alone) as works:
            seen.append((works, torch.is_inference_mode_enabled(), torch.rand(3)))
            raise ZeroDivisionError("at work")

    with pytest.raises(ZeroDivisionError, match="at work"):
        work()
    assert seen[0][:2] == (True, False)
    assert torch.equal(torch.get_rng_state(), before)
