"""Runs that are killed at any moment and started again end as if nothing had happened.

``make test-long`` runs this; a hundred kills take a quarter of an hour.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import commands
import pytest

KILLS = 100
RUN = (
    *("recipe=mnist_cnn", "data.samples=48", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"),
    *("callbacks.progress=null", "callbacks.evaluation.latency=null", "quantization=both", "export=onnx"),
    "hydra.run.dir=run",
)


def told(folder: Path) -> dict[str, Any]:
    """What a manifest says of the artifacts, without what differs between machines and moments."""
    content = json.loads((folder / "run" / "quantized" / "manifest.json").read_text())
    parts = ("candidate", "format", "status", "metrics", "delta", "sha256", "size_bytes", "quantized_ops", "float_ops")
    artifacts = [{name: entry[name] for name in parts} for entry in content["artifacts"]]
    return {"artifacts": artifacts, **{name: content[name] for name in ("selected", "budget")}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """A run that nobody interrupts: what it leaves, and how many seconds it takes."""
    folder = tmp_path_factory.mktemp("whole")
    commands.run("lq-train", "--cfg", "job", cwd=folder)  # starts the server
    start = time.monotonic()
    done = commands.run("lq-train", *RUN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return told(folder), time.monotonic() - start


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_that_is_started_again_leaves_the_same(
    number: int, whole: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    expected, seconds = whole
    moment = random.Random(number).uniform(0, seconds)
    killed = commands.run("lq-train", *RUN, cwd=tmp_path, timeout=moment)
    assert killed.returncode in (-9, 0)  # a run may be faster than the first one
    done = commands.run("lq-train", *RUN, cwd=tmp_path, timeout=3600)  # a machine may be busy
    assert done.returncode == 0, done.stderr
    assert told(tmp_path) == expected
    left = [path.name for path in (tmp_path / "fits").iterdir() if path.suffix not in (".lock", ".store")]
    assert len(left) == 1  # the fit, and no scratch of the run that was killed
    assert all(path.name.startswith(".") for path in tmp_path.glob("fits/*.store/*/*"))  # half written, for an hour
    assert not list((tmp_path / "run" / "quantized").rglob(".*"))
