"""Sweeps that are killed again and again end as if nothing had happened; ``make test-long``."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import commands
import pytest

KILLS = 20
JOBS = 20
SWEEP = (
    *("-m", "recipe=mnist_cnn", "data.samples=48", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"),
    *("callbacks.progress=null", "callbacks.evaluation.latency=null", "export=onnx", "algorithms=none"),
    "observer=minmax,histogram,percentile,moving_average",
    "callbacks.static.skip=[],[net.0],[op:linear],[op:add],[net.14]",
)
DATED, FIXED = (), ("hydra.sweep.dir=sweep",)
# The command in a process group of its own, which is killed as a whole.
COMMAND = """
import os, signal, threading
from lq_plugin.apps import train
os.setsid()
killer = threading.Timer(float(os.environ["SECONDS"]), os.killpg, (0, signal.SIGKILL))
killer.daemon = True
killer.start()
train.main()
"""


def run(folder: Path, *options: str, seconds: float = 3600) -> subprocess.CompletedProcess[str]:
    """Run the sweep; it is killed after some seconds."""
    (folder / "sweep.py").write_text(COMMAND)
    return commands.run("sweep.py", *SWEEP, *options, cwd=folder, environment={"SECONDS": str(seconds)}, timeout=3600)


def told(folder: Path) -> dict[str, Any]:
    """What a sweep leaves in its folder: the leaderboard without the paths, and the artifacts of each job."""
    board = json.loads((folder / "leaderboard.json").read_text().replace(str(folder), ""))
    made = {path.parent.parent.name: json.loads(path.read_text()) for path in folder.glob("*/quantized/manifest.json")}
    sums = {job: [entry["sha256"] for entry in content["artifacts"]] for job, content in made.items()}
    return {"board": board, "sha256": sums}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """A sweep that nobody interrupts: what it leaves, and how many seconds it takes."""
    folder = tmp_path_factory.mktemp("whole")
    commands.run("lq-train", "--cfg", "job", cwd=folder)  # starts the server
    start = time.monotonic()
    done = run(folder, *FIXED)
    assert done.returncode == 0, done.stderr
    return told(folder / "sweep"), time.monotonic() - start


@pytest.mark.parametrize("options", [DATED, FIXED], ids=["dated", "fixed"])
def test_a_sweep_that_is_killed_again_and_again_leaves_the_same(
    options: tuple[str, ...], whole: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    expected, seconds = whole
    assert len(expected["sha256"]) == JOBS
    moments, kills, finished = random.Random(str(options)), 0, set[Path]()
    latest = seconds / 5
    while kills < KILLS:
        start = time.monotonic()
        ended = run(tmp_path, *options, seconds=moments.uniform(0, latest))
        assert ended.returncode in (-signal.SIGKILL, 0), ended.stderr
        kills += ended.returncode != 0
        if ended.returncode == 0:  # all jobs are finished, and taking them over takes less time
            latest = min(latest, time.monotonic() - start)
        before, finished = finished, set(tmp_path.glob("fits/*.store/jobs/*.json"))
        assert before <= finished  # none is lost
        print(f"kill {kills}: {len(finished)} jobs finished")
    done = run(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("this job finished earlier") == len(finished)
    assert len(list(tmp_path.glob("fits/*.store/jobs/*.json"))) == JOBS  # each once
    assert len(list(tmp_path.glob("fits/*/fit.json"))) == 1
    *_, last = sorted(tmp_path.glob("multirun/*/*" if options is DATED else "sweep"))
    assert told(last) == expected
    assert not list(last.rglob("quantized/**/.*"))
