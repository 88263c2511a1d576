"""Latency: every runtime in a process of its own, measured in turns, with the number of threads set.

``python -m lq_plugin.evaluation.latency FORMAT FOLDER INPUTS OUTPUTS THREADS`` is the worker: it loads what lies in the
folder, writes what it computes of the inputs, prints one JSON line when it is ready, and for every line that it reads
runs for a while and prints its timings. The parent gives the turns, so that two runtimes never run at the same time
(see ``measure``).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lq_plugin.artifacts.base import FORMATS
from lq_plugin.errors import ConfigError
from lq_plugin.noise import muted

_MIN_CALLS = 3
_WARM_UP = 0.05  # seconds, at the beginning of every turn


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
        for field in ("batch_size", "rounds"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}: {getattr(self, field)} is too small. Allowed: 1 or more.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: {self.threads} is too small. Allowed: 1 or more, or null for torch's choice.")
        if self.seconds <= 0:
            raise ConfigError(f"seconds: {self.seconds} is too small. Allowed: above 0.")


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

    Args:
        here: calls of modules in this process, by the lane's name; it must not hold sessions whose threads would
            disturb them.
        lanes: format and folder, by the lane's name.
        inputs: flat input tensors of one call.
        options: how long, how often and with how many threads.
    """
    threads = options.threads or torch.get_num_threads()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "inputs.pt"
        torch.save(tuple(inputs), file)
        workers = {lane: _Worker(fmt, folder, file, threads) for lane, (fmt, folder) in lanes.items()}
        try:
            return _in_turns(here, workers, options, threads)
        finally:
            for worker in workers.values():
                worker.stop()


def _in_turns(
    here: Mapping[str, Callable[[], object]], workers: Mapping[str, _Worker], options: Latency, threads: int
) -> dict[str, Timing]:
    for worker in workers.values():
        worker.wait_until_ready()
    lanes: dict[str, _Here | _Worker] = {name: _Here(call, threads) for name, call in here.items()} | dict(workers)
    times: dict[str, list[float]] = {name: [] for name in lanes}
    for turn in range(options.rounds + 1):
        for name, lane in lanes.items():
            new = lane.turn(options.seconds) if lane.error is None else []
            times[name] += new if turn else []
    return {name: _timing(times[name], lane) for name, lane in lanes.items()}


def _timing(times: list[float], lane: _Here | _Worker) -> Timing:
    if lane.error is not None:
        return Timing(mode=lane.mode, error=lane.error)
    ordered = sorted(times)
    p90 = ordered[round(0.9 * (len(ordered) - 1))]
    return Timing(statistics.median(ordered) * 1e3, p90 * 1e3, len(ordered), lane.mode, lane.outputs)


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    for _ in _until(_WARM_UP):  # after a pause, the system may have put all threads on one core
        call()
    times: list[float] = []
    for _ in _until(seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _until(seconds: float) -> Iterator[None]:
    """Go on for a while, and for some calls at least."""
    calls, end = 0, time.perf_counter() + seconds
    while calls < _MIN_CALLS or time.perf_counter() < end:
        yield
        calls += 1


class _Here:
    """A module in this process."""

    mode = "eager"
    outputs: tuple[Tensor, ...] = ()

    def __init__(self, call: Callable[[], object], threads: int) -> None:
        self.error: str | None = None
        self._call, self._threads = call, threads

    def turn(self, seconds: float) -> list[float]:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return _timed(self._call, seconds)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            return []
        finally:
            torch.set_num_threads(before)


class _Worker:
    """A process that holds one runtime and measures when told to."""

    def __init__(self, format_name: str, folder: Path, inputs: Path, threads: int) -> None:
        self.mode = ""
        self.error: str | None = None
        self.outputs: tuple[Tensor, ...] = ()
        self._results = inputs.parent / f"outputs-{format_name}-{id(self)}.pt"
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by stop)
        command = [sys.executable, "-m", __name__, format_name, str(folder), str(inputs), str(self._results)]
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [*command, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path},
        )

    def wait_until_ready(self) -> None:
        answer = self._read()
        if answer is not None:
            self.mode = answer["mode"]
            self.outputs = torch.load(self._results, weights_only=True)

    def turn(self, seconds: float) -> list[float]:
        assert self._process.stdin is not None
        self._signal("SIGCONT")
        try:
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker died; reading from it says why
        times = self._read() or []
        self._signal("SIGSTOP")  # threads that spin for more work would disturb the next one's turn
        return times

    def _signal(self, name: str) -> None:
        if hasattr(signal, name) and self._process.poll() is None:  # there are none on Windows
            self._process.send_signal(getattr(signal, name))

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().splitlines() if line.strip()]
        self.error = f"the worker process ended with {self._process.returncode}: {lines[-1] if lines else 'no message'}"
        return None


def _main(format_name: str, folder: str, inputs: str, results: str, threads: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a runtime prints must not mix with the answers
    torch.set_num_threads(int(threads))
    tensors: tuple[Tensor, ...] = torch.load(inputs, weights_only=True)
    run, mode = _runner(format_name, Path(folder), int(threads), tensors)
    torch.save(tuple(run(tensors)), results)
    print(json.dumps({"mode": mode}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_timed(lambda: run(tensors), float(line))), file=answers, flush=True)


def _runner(
    format_name: str, folder: Path, threads: int, tensors: Sequence[Tensor]
) -> tuple[Callable[[Sequence[Tensor]], Sequence[Tensor]], str]:
    """The loaded artifact; a graph of torch is compiled where a compiler is there."""
    chosen = FORMATS[format_name]
    if chosen.module is None:
        assert chosen.load is not None
        return chosen.load(folder, threads), chosen.runtime
    module = chosen.module(folder)
    try:
        return _compiled(module, tensors), "torch.compile"
    except Exception as error:
        print(f"torch.compile is not available: {error}", file=sys.stderr)
        return lambda given: _without_grad(module, given), "eager"


def _compiled(module: torch.nn.Module, tensors: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    from torch._inductor import config

    config.freezing = True
    with muted():
        compiled = torch.compile(module, dynamic=False)
        _without_grad(compiled, tensors)
    return lambda given: _without_grad(compiled, given)


def _without_grad(module: Callable[..., Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return list(module(*tensors))


if __name__ == "__main__":
    _main(*sys.argv[1:])
