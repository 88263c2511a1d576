"""Processes that hold one lane each and work on request, so that lanes take turns without being restarted."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # from where `python -m benchmarks` finds this package
PATIENCE = 1800.0  # seconds: the longest that any answer was seen to take is a third of it


class Worker:
    """A Python process that answers with lines of JSON, see ``answers``; it ends with the ``with`` block.

    Args:
        command: what Python runs, from the repository's root.
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
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def turn(self, request: str) -> Any:
        """Send a line and wait for the answer."""
        self.ask(request)
        return self.answer()

    def ask(self, request: str) -> None:
        """Send a line; a process that has ended says so in its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def answer(self) -> Any:
        """Wait for the next answer; ``{"error": …}`` if the process has ended or takes too long."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        if not ready:
            self._process.kill()
            return {"error": f"no answer within {PATIENCE:.0f} s"}
        if line := self._process.stdout.readline():
            return json.loads(line)
        lines = self._log.read_text().strip().splitlines() or [f"exit status {self._process.wait()}"]
        return {"error": lines[-1][:300]}


def answers() -> Callable[[Any], None]:
    """Keep a worker's stdout for its answers; what libraries print goes to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda content: print(json.dumps(content), file=stream, flush=True)
