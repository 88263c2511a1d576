"""While one process works at the end of fit the others wait, for longer than the training's process group would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import trainer

from lq_plugin.callbacks import ranks

# Two fits in two processes whose process group gives up after 4 s. In the first, process 0 works for 6 s; in the
# second, it is killed while it works.
SCRIPT = """
import os, signal, sys, time
from datetime import timedelta

import lightning as L
from lightning.pytorch.strategies import DDPStrategy

from tiny import Images, Tiny
from lq_plugin import ArtifactExport, StaticQuantization
from lq_plugin.jobs import StaticJob


class SlowJob(StaticJob):
    def candidate(self, store):
        time.sleep(6)
        return super().candidate(store)


class Slow(StaticQuantization):
    def job(self, source):
        return SlowJob(**vars(super().job(source)))


class Killed(StaticQuantization):
    def job(self, source):
        os.kill(os.getpid(), signal.SIGKILL)


for name, callbacks in {"slow": [Slow(), ArtifactExport(["pt2"])], "killed": [Killed()]}.items():
    trainer = L.Trainer(
        default_root_dir=f"{sys.argv[1]}/{name}", accelerator="cpu", devices=2, max_epochs=1, logger=False,
        strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=4)),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, callbacks=callbacks,
    )
    trainer.fit(Tiny(), datamodule=Images())
    print(f"{name} ended well", flush=True)
"""


def two_processes(script: str, *arguments: str) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of two processes that form one group."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    paths = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | shared | {"LOCAL_RANK": str(rank), "RANK": str(rank), "PYTHONPATH": paths},
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="no process can be killed there as SIGKILL does")
def test_others_wait_beyond_the_process_groups_timeout_and_no_longer_than_the_worker_lives(tmp_path: Path) -> None:
    (worker, *_), (waiting, said, error) = two_processes(SCRIPT, str(tmp_path))
    assert said == "slow ended well\n", error
    assert (tmp_path / "slow" / "quantized" / "static" / "pt2" / "artifact.json").is_file()
    assert (worker, waiting) == (-signal.SIGKILL, 1)
    assert "ExportError: process 0, which exports and evaluates when fit ends, or another process ended" in error


def test_alone_the_work_leaves_the_random_state_and_the_mode_and_raises_what_it_raises(tmp_path: Path) -> None:
    alone = trainer(tmp_path)
    ranks.meet()
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
