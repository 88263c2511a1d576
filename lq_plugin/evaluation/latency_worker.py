"""The worker of ``latency.py``: a process that holds one runtime, and measures when it is told to.

``python -m lq_plugin.evaluation.latency_worker FORMAT FOLDER INPUTS OUTPUTS THREADS PARENT KEY`` loads what lies in the
folder, writes its outputs for the inputs, says that it is ready, and for every line that it reads runs for a while and
answers with its timings. An answer is a line of JSON after the key, see ``latency_process.py``.

Only the standard library is imported above: what follows takes seconds, and this process has to be tied to its parent,
and its answers kept apart from what others print, before that.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]

MIN_CALLS = 3
MAX_CALLS = 100_000  # of one turn; they bound an answer, and a median of more is no better
WARM_UP = 0.05  # seconds, at the beginning of every turn
_PR_SET_PDEATHSIG = 1


def timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Call a function again and again for a while, and return how many seconds each call took."""
    for _ in _until(WARM_UP):  # after a pause, the system may have put all threads on one core
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
    while calls < MIN_CALLS or (time.perf_counter() < end and calls < MAX_CALLS):
        yield
        calls += 1


def _main(format_name: str, folder: str, inputs: str, results: str, threads: str, parent: str, key: str) -> None:
    answer = _answers(key)
    end_with(int(parent))
    import torch

    torch.set_num_threads(int(threads))
    tensors: tuple[Tensor, ...] = torch.load(inputs, weights_only=True)
    run, mode = _runner(format_name, Path(folder), int(threads), tensors)
    start = time.perf_counter()
    outputs = tuple(run(tensors))
    seconds = time.perf_counter() - start
    torch.save(outputs, results)
    answer({"mode": mode, "seconds": seconds})
    for line in sys.stdin:
        answer(timed(lambda: run(tensors), float(line)))


def _answers(key: str) -> Callable[[object], None]:
    """Reserve stdout for this process's answers; whatever else is printed from here on goes to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: object) -> None:
        # Something printed before may have left its line open.
        print(f"\n{key} {json.dumps(content)}", file=stream, flush=True)

    return answer


def end_with(parent: int) -> None:
    """End this process when its parent ends, however that ends, and even while this one is stopped.

    A stopped process notices nothing but SIGKILL, which Linux sends for us. It does so when the *thread* that started
    this process ends. That is no danger where a program measures in a thread of its own: ``Starting`` starts and ends
    its workers within one block, so that thread lives for as long as they are needed. Elsewhere, and between two turns,
    the end of stdin is the end of this process.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), *[ctypes.c_ulong(0)] * 3)
    if os.getppid() != parent:  # it ended before the signal was asked for
        sys.exit("the process that started this one has ended")


def _runner(format_name: str, folder: Path, threads: int, tensors: Sequence[Tensor]) -> tuple[Run, str]:
    """The loaded artifact; a graph of torch is compiled where a compiler is there."""
    from lq_plugin.artifacts.base import FORMATS

    chosen = FORMATS[format_name]
    assert chosen.load is not None
    if chosen.module is None:
        return chosen.load(folder, threads), chosen.runtime
    try:
        return _compiled(chosen.module(folder), tensors), "torch.compile"
    except Exception as error:
        print(f"torch.compile is not available: {error}", file=sys.stderr)
        return chosen.load(folder, threads), "eager"


def _compiled(module: nn.Module, tensors: Sequence[Tensor]) -> Run:
    import torch
    from torch._inductor import config

    from lq_plugin.noise import muted

    config.freezing = True
    with muted():
        compiled = torch.compile(module, dynamic=False)
        _without_grad(compiled, tensors)
    return lambda given: _without_grad(compiled, given)


def _without_grad(module: Callable[..., Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    import torch

    with torch.no_grad():
        return list(module(*tensors))


if __name__ == "__main__":
    _main(*sys.argv[1:])
