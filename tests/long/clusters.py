"""A sweep in the processes of a Ray cluster on this machine, which takes half a minute to start; ``make test-long``."""

from __future__ import annotations

import json
from pathlib import Path

import commands


def test_jobs_run_in_processes_of_a_ray_cluster(tmp_path: Path) -> None:
    options = ("recipe=mnist_cnn", "data.samples=48", "trainer.max_epochs=1", "callbacks.evaluation.latency=null")
    sweep = ("-m", "sweep=ray", "observer=minmax,percentile", "export=onnx", "algorithms=none")
    done = commands.run("lq-train", *sweep, *options, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "sweep" / "leaderboard.json").read_text())["artifacts"]) == 2
    assert len(list(tmp_path.glob("fits/*/fit.json"))) == 1
