"""Processes that hold one lane each and work on request, so that lanes take turns without being restarted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Worker:
    """A Python process that answers with lines of JSON, see ``answers``; it ends with the ``with`` block.

    Args:
        command: what Python runs.
        log: the file for what the process prints.
        threads: number of threads of its runtime.
        settings: further environment variables.
    """

    def __init__(self, command: Sequence[str], log: Path, threads: int, **settings: str) -> None:
        self._log = log
        limits = dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS"], str(threads))
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, *command, "--threads", str(threads)],
                env=os.environ | limits | settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def turn(self, request: str) -> Any:
        """Send a line and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        """Wait for the next answer; ``{"error": …}`` if the process has ended."""
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        lines = self._log.read_text().strip().splitlines() or [f"exit status {self._process.wait()}"]
        return {"error": lines[-1][:300]}


def answers() -> Callable[[Any], None]:
    """Keep a worker's stdout for its answers; what libraries print goes to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda content: print(json.dumps(content), file=stream, flush=True)
