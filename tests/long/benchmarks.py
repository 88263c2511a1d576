"""One cell of ``python -m benchmarks``, from the model to the document; ``make test-long`` runs this."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_cell_is_measured_and_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "mlp", "--lanes", "fp32_eager", "ours_onnx"]
    command += ["--batch", "1", "--threads", "1", "--rounds", "1", "--seconds", "0.01", "--keep", str(tmp_path)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    lanes = json.loads((tmp_path / "part.json").read_text())["cells"]["mlp"]["1/1"]["lanes"]
    assert lanes["ours_onnx"]["kernels"] == {"int8": 4, "float": 0}
    assert lanes["ours_onnx"]["sqnr_db"] > 25
    assert len(lanes["fp32_eager"]["rounds"]) == 1
    assert "MLP, 4 × 1024" in (tmp_path / "part.md").read_text()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "prepare 0 (0 minutes), compile 0 (0 minutes), cell 0 (0 minutes)" in again.stdout
