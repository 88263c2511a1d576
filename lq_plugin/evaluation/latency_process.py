"""A worker of ``latency.py`` seen from its parent: started, asked within deadlines, and ended.

Whatever a worker does (hang, die, print noise, answer nonsense) affects only its own lane, and the lane says why.
"""

from __future__ import annotations

import math
import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lq_plugin.evaluation.latency_worker import MIN_CALLS, WARM_UP
from lq_plugin.untrusted import MEBIBYTE, parse_json, regular_file

_LINE_LIMIT = 8 * MEBIBYTE  # the most calls of one turn, with 22 characters each, are a quarter of it
_LAST_WORDS = 1 << 16  # bytes at the end of stderr in which the last message is looked for
_ENDING = 2.0  # seconds that the system gets to end a process


@dataclass(frozen=True)
class Deadlines:
    """How long a worker is waited for before it is ended.

    Args:
        start: seconds to load an artifact and to compute once. Six workers that start side by side on two cores take
            half a minute; compiling a large model with torch takes minutes.
        turn: seconds to answer in a turn, besides ten times those that its calls should take: what else runs on this
            machine may slow them.
        end: seconds to end after its output was closed; an interpreter that holds torch takes some to tear down.
    """

    start: float = 600.0
    turn: float = 60.0
    end: float = 30.0


def command(format_name: str, folder: Path, inputs: Path, outputs: Path, threads: int) -> list[str]:
    """Return the command line of a worker for what lies in a folder."""
    files = (str(folder), str(inputs), str(outputs))
    return [sys.executable, "-m", "lq_plugin.evaluation.latency_worker", format_name, *files, str(threads)]


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that finds this package and uses so many threads."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    return os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


class _FailedError(Exception):
    """Nothing can be measured; the message continues after "the worker process"."""


class Worker:
    """A process that holds one runtime and measures when told to.

    Its answers are lines that begin with a key. Other lines, from a runtime or from the interpreter's own start, are
    ignored.

    Args:
        command: command line of the process; the parent's process id and the key are added to it.
        outputs: the file that it writes what it computed to.
        threads: how many it may use.
        deadlines: how long it is waited for.

    Attributes:
        mode: how the runtime runs, once it is ready.
        outputs: flat results of its first call.
        error: why nothing can be measured.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, command: Sequence[str], outputs: Path, threads: int, deadlines: Deadlines) -> None:
        self.mode = ""
        self.error: str | None = None
        self.outputs: tuple[Tensor, ...] = ()
        self._results, self._deadlines = outputs, deadlines
        self._first = 0.0  # seconds of the first call
        self._key = secrets.token_hex(8)
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        self._started = time.monotonic()
        try:
            self._process = subprocess.Popen(
                [*command, str(os.getpid()), self._key],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment(threads),
            )
        except BaseException:
            self._stderr.close()
            raise
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """Wait until the artifact is loaded, and read what it computed."""
        try:
            self._get_ready()
        except _FailedError as error:
            self._give_up(error)

    def turn(self, seconds: float) -> list[float]:
        """Measure for so many seconds, and return how many each call took; none where that failed."""
        try:
            return self._measured(seconds)
        except _FailedError as error:
            self._give_up(error)
            return []

    def stop(self) -> None:
        """End the process, also a stopped one."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # it waits in the kernel, for a disk perhaps; it will end after that
            self._process.wait(_ENDING)
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        self._reader.join(_ENDING)
        self._stderr.close()

    def _listen(self) -> None:
        """Pass on the lines that begin with the key; runs in a thread, because a pipe has no deadlines on Windows."""
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            while line := stream.readline(_LINE_LIMIT):
                if line.startswith(self._key.encode()):
                    self._lines.put(line)
                while line and not line.endswith(b"\n"):  # the rest of an overlong line
                    line = stream.readline(_LINE_LIMIT)
        self._lines.put(None)

    def _get_ready(self) -> None:
        passed = time.monotonic() - self._started
        match self._answer(self._deadlines.start - passed, self._deadlines.start, "it loaded the artifact"):
            case {"mode": str(mode), "seconds": float(seconds)} if _is_duration(seconds):
                # No call took longer than all that it did so far, whatever it says.
                self.mode, self._first = mode, min(seconds, time.monotonic() - self._started)
            case _:
                raise _FailedError("did not say how it runs and how long a call took")
        try:
            self.outputs = _tensors(torch.load(regular_file(self._results), weights_only=True))
        except Exception as error:
            raise _FailedError(f"left outputs that cannot be read ({type(error).__name__}: {error})") from error

    def _measured(self, seconds: float) -> list[float]:
        assert self._process.stdin is not None
        self._signal("SIGCONT")
        with suppress(OSError):  # it died; its answer, or rather the lack of it, says why
            self._process.stdin.write(f"{seconds}\n".encode())
            self._process.stdin.flush()
        limit = self._deadlines.turn + 10 * (WARM_UP + seconds + 2 * MIN_CALLS * self._first)
        times = self._answer(limit, limit, "it measured")
        self._signal("SIGSTOP")  # threads that spin for more work would disturb the next one's turn
        if not (isinstance(times, list) and times and all(map(_is_duration, times))):
            raise _FailedError("did not answer with the seconds that its calls took")
        return times

    def _answer(self, seconds: float, limit: float, doing: str) -> object:
        """Wait for the next answer."""
        try:
            line = self._lines.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            raise _FailedError(f"did not answer within {limit:.3g} s while {doing}, and was ended") from None
        if line is None:
            raise _FailedError(self._how_it_ended(doing))
        if not line.endswith(b"\n"):
            raise _FailedError(f"sent an incomplete line, or one of more than {_LINE_LIMIT / MEBIBYTE:g} MiB")
        try:
            return parse_json(line.removeprefix(self._key.encode()))
        except ValueError as error:
            raise _FailedError(f"sent an answer that {error}") from error

    def _how_it_ended(self, doing: str) -> str:
        try:
            return f"ended with {self._process.wait(self._deadlines.end)} while {doing}"
        except subprocess.TimeoutExpired:
            return f"closed its output while {doing}, without ending, and was ended"

    def _give_up(self, error: _FailedError) -> None:
        self._process.kill()
        self.error = f"the worker process {error}: {self._last_words()}"

    def _last_words(self) -> str:
        """The last line of what the process wrote to stderr."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(size - _LAST_WORDS, 0))
        lines = [line.strip() for line in self._stderr.read(_LAST_WORDS).decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "no message")

    def _signal(self, name: str) -> None:
        if hasattr(signal, name) and self._process.poll() is None:  # there are none on Windows
            self._process.send_signal(getattr(signal, name))


def _is_duration(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _tensors(value: object) -> tuple[Tensor, ...]:
    if not (isinstance(value, tuple) and all(isinstance(item, Tensor) for item in value)):
        raise TypeError("they are no tensors")
    return value
