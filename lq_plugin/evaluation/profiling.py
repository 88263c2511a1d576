"""How long each node of an artifact takes, measured in a process of its own by the runtime's profiler.

``python -m lq_plugin.evaluation.profiling FORMAT INPUTS RESULTS THREADS PARENT FOLDER…`` profiles what lies in the
folders, one after the other, and writes a list of durations for each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lq_plugin import torch_file
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.coverage import Duration
from lq_plugin.errors import EvaluationError
from lq_plugin.evaluation.latency_process import environment
from lq_plugin.evaluation.latency_worker import end_with

_LONGEST = 300.0  # seconds until a process that does not end is ended


def profiled(
    format_name: str, folders: Sequence[Path], tensors: Sequence[Tensor], threads: int
) -> list[list[Duration]]:
    """Return how long each node takes, in the order in which they run, for each of several folders.

    Args:
        format_name: of what lies in the folders; one whose runtime has a profiler.
        folders: artifacts, or float graphs in the same format.
        tensors: flat inputs of one call.
        threads: of the runtime.

    Raises:
        EvaluationError: the process failed, or did not end in time.
    """
    with tempfile.TemporaryDirectory() as scratch:
        inputs, results = Path(scratch) / "inputs.pt", Path(scratch) / "results.json"
        torch_file.write(tuple(tensors), inputs)
        module = "lq_plugin.evaluation.profiling"
        options = (format_name, str(inputs), str(results), str(threads), str(os.getpid()))
        try:
            subprocess.run(
                [sys.executable, "-m", module, *options, *map(str, folders)],
                env=environment(threads),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=_LONGEST,
                text=True,
            )
        except subprocess.TimeoutExpired as error:
            raise EvaluationError(f"profiling did not end within {_LONGEST:g} s, and was ended") from error
        except subprocess.CalledProcessError as error:
            said = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise EvaluationError(f"profiling ended with {error.returncode}: {said}") from error
        return [
            [Duration(frozenset(nodes), microseconds) for nodes, microseconds in durations]
            for durations in json.loads(results.read_bytes())
        ]


def _main(format_name: str, inputs: str, results: str, threads: str, parent: str, *folders: str) -> None:
    end_with(int(parent))
    torch.set_num_threads(int(threads))
    tensors: tuple[Tensor, ...] = torch.load(inputs, weights_only=True)
    profile = FORMATS[format_name].profile
    assert profile is not None
    found = [profile(Path(folder), tensors, int(threads)) for folder in folders]
    Path(results).write_text(json.dumps([[(sorted(e.nodes), e.microseconds) for e in each] for each in found]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
