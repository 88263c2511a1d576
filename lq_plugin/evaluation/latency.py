"""Latency: every runtime in a process of its own, measured in turns, with the number of threads set.

The parent gives the turns, so that two runtimes never run at the same time, see :func:`measure`. A worker is
``latency_worker.py``; how it is started, asked and ended is in ``latency_process.py``.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lq_plugin import torch_file
from lq_plugin.errors import ConfigError
from lq_plugin.evaluation.latency_process import Deadlines, Worker, command
from lq_plugin.evaluation.latency_worker import timed
from lq_plugin.options import check_types


@dataclass(frozen=True)
class Latency:
    """How latency is measured.

    Args:
        batch_size: samples in a call; 1 by default. A model whose batch size is fixed is measured with that.
        threads: of every runtime; those of torch by default.
        rounds: turns of every runtime, after one turn of warm-up.
        seconds: length of a turn, at least three calls.
    """

    batch_size: int = 1
    threads: int | None = None
    rounds: int = 5
    seconds: float = 0.2

    def __post_init__(self) -> None:
        check_types(self)
        for field in ("batch_size", "rounds"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}: {getattr(self, field)} is too small. Allowed: 1 or more.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: {self.threads} is too small. Allowed: 1 or more, or null for torch's choice.")
        if self.seconds <= 0:
            raise ConfigError(f"seconds: {self.seconds} is too small. Allowed: above 0.")
        if not math.isfinite(self.seconds):
            raise ConfigError(f"seconds: {self.seconds} is not finite. Allowed: a finite number above 0.")

    @property
    def number_of_threads(self) -> int:
        """How many threads every runtime uses, given the current state of this process."""
        return self.threads or torch.get_num_threads()


@dataclass(frozen=True)
class Timing:
    """Measured latency in milliseconds a call, or why there is none.

    Args:
        median: half of the calls were faster.
        p90: nine in ten calls were faster.
        calls: number of calls measured.
        mode: how the runtime ran, such as ``"torch.compile"``.
        outputs: flat results of the worker's first call.
        error: why nothing was measured.
    """

    median: float | None = None
    p90: float | None = None
    calls: int = 0
    mode: str = ""
    outputs: tuple[Tensor, ...] = ()
    error: str | None = None


def measure(
    here: Mapping[str, Callable[[], object]],
    lanes: Mapping[str, tuple[str, Path]],
    inputs: Sequence[Tensor],
    options: Latency,
) -> dict[str, Timing]:
    """Measure modules in this process and every lane in one of its own, in turns.

    A lane that fails says why and does not affect the others.

    Args:
        here: calls of modules in this process, by the lane's name; it must not hold sessions whose threads would
            disturb them.
        lanes: format and folder, by the lane's name.
        inputs: flat input tensors of one call.
        options: how long, how often and with how many threads.
    """
    with Starting(inputs, options) as starting:
        for lane, (format_name, folder) in lanes.items():
            starting.add(lane, format_name, folder)
        return starting.measure(here)


class Starting(AbstractContextManager["Starting"]):
    """Workers that start, one by one and beside other work, until they are measured; they end with the ``with`` block.

    Six workers need 30 to 45 s of CPU time until they are ready, most of it in compilers.

    Args:
        inputs: flat input tensors of one call.
        options: how long, how often and with how many threads they will be measured.
    """

    def __init__(self, inputs: Sequence[Tensor], options: Latency) -> None:
        self._options, self._threads = options, options.number_of_threads
        self._workers: dict[str, Worker] = {}
        self._failed: dict[str, Timing] = {}
        self._stack = ExitStack()
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._inputs = self._scratch / "inputs.pt"
        torch_file.write(tuple(inputs), self._inputs)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, lane: str, format_name: str, folder: Path) -> None:
        """Start the worker of a lane.

        Args:
            lane: its name.
            format_name: what lies in the folder.
            folder: must exist until the block ends.
        """
        outputs = self._scratch / f"outputs-{len(self._workers)}.pt"
        line = command(format_name, folder, self._inputs, outputs, self._threads)
        try:
            self._workers[lane] = Worker(line, outputs, self._threads, Deadlines())
        except OSError as error:
            self._failed[lane] = Timing(error=f"the worker process could not be started: {error}")
        else:
            self._stack.callback(self._workers[lane].stop)

    def measure(self, here: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        """Wait for the workers, and measure them and what runs in this process; see :func:`measure`."""
        calls = {name: Here(call, self._threads) for name, call in here.items()}
        return in_turns({**calls, **self._workers}, self._options) | self._failed


def in_turns(lanes: Mapping[str, Here | Worker], options: Latency) -> dict[str, Timing]:
    """Measure lanes in turns, after one turn of warm-up.

    Args:
        lanes: what is measured, by name. A lane that fails gets no more turns.
        options: how long a turn is, and how many there are.
    """
    for lane in lanes.values():
        lane.wait_until_ready()
    times: dict[str, list[float]] = {name: [] for name in lanes}
    for turn in range(options.rounds + 1):
        for name, lane in lanes.items():
            new = lane.turn(options.seconds) if lane.error is None else []
            times[name] += new if turn else []
    return {name: _timing(times[name], lane) for name, lane in lanes.items()}


def _timing(times: list[float], lane: Here | Worker) -> Timing:
    if lane.error is not None:
        return Timing(mode=lane.mode, error=lane.error)
    ordered = sorted(times)
    p90 = ordered[round(0.9 * (len(ordered) - 1))]
    return Timing(statistics.median(ordered) * 1e3, p90 * 1e3, len(ordered), lane.mode, lane.outputs)


class Here:
    """A module in this process.

    Args:
        call: calls the module.
        threads: how many torch may use for it.
    """

    mode = "eager"
    outputs: tuple[Tensor, ...] = ()

    def __init__(self, call: Callable[[], object], threads: int) -> None:
        self.error: str | None = None
        self._call, self._threads = call, threads

    def wait_until_ready(self) -> None:
        """There is nothing to wait for."""

    def turn(self, seconds: float) -> list[float]:
        """Measure for so many seconds, and return how many each call took; none where that failed."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return timed(self._call, seconds)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            return []
        finally:
            torch.set_num_threads(before)
