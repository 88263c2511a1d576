"""A training that was killed and goes on from its last checkpoint gives the same artifacts, with shuffled data too."""

from __future__ import annotations

from pathlib import Path

import commands
import pytest
import resumed


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_training_that_is_killed_and_resumed_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # as they were, when the test is over
        monkeypatch.setenv(name, "0")
    whole = resumed.run(tmp_path / "whole")
    folder = tmp_path / "killed"
    killed = commands.run("resumed.py", str(folder), "5", cwd=Path(resumed.__file__).parent)
    assert killed.returncode == -9, killed.stderr
    assert not (folder / "quantized").exists()
    made = resumed.run(folder, ckpt_path="last")
    assert [entry.sha256 for entry in made.artifacts] == [entry.sha256 for entry in whole.artifacts]
    assert [entry.metrics for entry in made.artifacts] == [entry.metrics for entry in whole.artifacts]
    assert (made.fp32.metrics, made.selected) == (whole.fp32.metrics, whole.selected)
    assert made.calibration == whole.calibration
    assert made.fp32.metrics["val/loss"] > 0
