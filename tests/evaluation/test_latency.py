"""Latency is measured in turns by processes of their own, and whatever one of them does costs its own lane alone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import lq_plugin
from lq_plugin.errors import ConfigError
from lq_plugin.evaluation.latency import Here, Latency, Timing, in_turns, measure
from lq_plugin.evaluation.latency_process import Deadlines, Worker, command
from lq_plugin.scheme import Scheme

INPUT = torch.arange(6.0).reshape(2, 3)
QUICK = Latency(rounds=2, seconds=0.01, threads=1)
SHORT = Deadlines(start=1.0, turn=0.5)
NOISY = "import sys; print('a line of noise'); print('and an open one', end='', flush=True)"


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ONNX model that adds its input to itself."""
    folder = tmp_path_factory.mktemp("doubling")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    onnx.save(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), folder / "model.onnx"
    )
    return folder


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an INT8 layer as a graph of torch."""
    candidate = lq_plugin.quantize(nn.Linear(3, 3), [INPUT], Scheme(algorithms=()))
    return lq_plugin.export(candidate, tmp_path_factory.mktemp("linear"), ["pt2"])["pt2"].path


def fails() -> object:
    raise ZeroDivisionError("in the call")


THREADS: set[int] = set()


@pytest.fixture(scope="module")
def timings(doubling: Path, linear: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Timing]:
    """Five lanes of which two fail, with an interpreter that prints while it starts."""
    site, empty = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    (site / "sitecustomize.py").write_text(NOISY)
    lanes = {"broken": ("onnx", empty), "doubling": ("onnx", doubling), "compiled": ("pt2", linear)}
    here = {"eager": lambda: THREADS.add(torch.get_num_threads()), "fails": fails}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        try:
            return measure(here, lanes, [INPUT], QUICK)
        finally:
            THREADS.add(-torch.get_num_threads())
            torch.set_num_threads(before)


def test_a_lane_has_its_median_and_what_it_computed(timings: Mapping[str, Timing]) -> None:
    for name, mode in (("eager", "eager"), ("doubling", "onnxruntime")):
        made = timings[name]
        assert (made.mode, made.error) == (mode, None)
        assert made.median is not None
        assert made.p90 is not None
        assert 0 < made.median <= made.p90
        assert made.calls >= 2 * 3  # three calls a round at least
    (output,) = timings["doubling"].outputs
    assert torch.equal(output, 2 * INPUT)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_graph_of_torch_is_compiled(timings: Mapping[str, Timing], linear: Path) -> None:
    made = timings["compiled"]
    assert (made.mode, made.error) == ("torch.compile", None)
    torch.testing.assert_close(made.outputs[0], lq_plugin.load(linear)(INPUT))


def test_noise_of_a_starting_interpreter_is_no_answer(timings: Mapping[str, Timing]) -> None:
    assert timings["doubling"].error is None


def test_a_lane_that_fails_says_why_and_costs_no_other(timings: Mapping[str, Timing]) -> None:
    assert set(timings) == {"eager", "fails", "broken", "doubling", "compiled"}
    assert timings["fails"] == Timing(mode="eager", error="ZeroDivisionError: in the call")
    error = timings["broken"].error or ""
    assert error.startswith("the worker process ended with 1 while it loaded the artifact: ")
    assert "model.onnx" in error  # the last line of its own trace
    assert timings["broken"].median is None


def test_torch_has_the_asked_threads_during_a_turn_and_its_own_after(timings: Mapping[str, Timing]) -> None:
    assert {1, -2} == THREADS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seconds": float("inf")}, r"seconds: inf is not finite\. Allowed: a finite number"),
        ({"seconds": float("nan")}, r"seconds: nan is not finite"),
        ({"seconds": 0.0}, r"seconds: 0\.0 is too small\. Allowed: above 0"),
        ({"rounds": 0}, r"rounds: 0 is too small\. Allowed: 1 or more"),
        ({"batch_size": 0}, r"batch_size: 0 is too small"),
        ({"threads": 0}, r"threads: 0 is too small"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Latency(**options)  # type: ignore[arg-type]


# A worker of a few lines: real processes that hang, die and talk nonsense.
PREAMBLE = """
import json, os, signal, sys, time
outputs, parent, key = sys.argv[1:]

def say(content):
    print(key, json.dumps(content), flush=True)

def ready():
    say({"mode": os.environ["OMP_NUM_THREADS"], "seconds": 0.001})

def turns(times):
    for line in sys.stdin:
        say(times)

def hang():
    print("still at it", file=sys.stderr, flush=True)
    time.sleep(1000)
"""
GOOD = "ready(); turns([0.25])"


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Worker]]:
    made: list[Worker] = []
    yield made
    for worker in made:
        worker.stop()


def started(script: str, folder: Path, workers: list[Worker], deadlines: Deadlines = Deadlines()) -> Worker:
    """A process that runs a script as a worker, with outputs that may be read."""
    outputs = folder / f"{len(workers)}.pt"
    torch.save((INPUT,), outputs)
    line = [sys.executable, "-S", "-c", f"{PREAMBLE}\n{script}", str(outputs)]
    workers.append(Worker(line, outputs, 3, deadlines))
    return workers[-1]


LOADING, MEASURING = "while it loaded the artifact", "while it measured"
NO_TIMES = "did not answer with the seconds that its calls took"
BAD = {
    "hangs at start": ("hang()", f"did not answer within 1 s {LOADING}, and was ended: still at it"),
    "stopped at start": ("os.kill(os.getpid(), signal.SIGSTOP)", f"did not answer within 1 s {LOADING}"),
    "hangs in a turn": ("ready(); sys.stdin.readline(); hang()", rf"did not answer within \S+ s {MEASURING}"),
    "dies at start": ("sys.exit('no such file')", f"ended with 1 {LOADING}: no such file"),
    "dies in a turn": ("ready(); sys.stdin.readline(); os._exit(3)", f"ended with 3 {MEASURING}: no message"),
    "dies before a turn": ("ready(); sys.exit('gone')", f"ended with 1 {MEASURING}: gone"),
    "speaks no UTF-8": (r"sys.stderr.buffer.write(b'\xff last\n'); sys.exit(1)", "ended with 1 .*: \ufffd last"),
    "closes its output": ("os.close(1); hang()", f"closed its output {LOADING}, without ending, and was ended"),
    "no JSON": ("print(key, '{', flush=True); hang()", "sent an answer that is not valid JSON"),
    "deep JSON": ("print(key, '[' * 100_000, flush=True); hang()", "sent an answer that is nested too deeply"),
    "an endless line": ("print(key, ' ' * (9 << 20)); hang()", "sent an incomplete line, or one of more than 8 MiB"),
    "half a line": ("print(key, '[', end='')", "sent an incomplete line, or one of more than 8 MiB"),
    "ready without a mode": ("say([]); hang()", "did not say how it runs and how long a call took"),
    "an endless first call": ("say({'mode': '', 'seconds': 1e999}); hang()", "sent an answer that .*Infinity"),
    "no outputs": ("os.remove(outputs); ready(); hang()", r"left outputs that cannot be read \(FileNotFoundError"),
    "other outputs": ("open(outputs, 'w').close(); ready(); hang()", r"left outputs that cannot be read \("),
    "no times": ("ready(); turns([])", NO_TIMES),
    "times in a dict": ("ready(); turns({'a': 1.0})", NO_TIMES),
    "a time that is text": ("ready(); turns([0.1, '0.1'])", NO_TIMES),
    "a negative time": ("ready(); turns([-0.1])", NO_TIMES),
}


@pytest.mark.parametrize(("script", "said"), BAD.values(), ids=BAD)
def test_a_worker_that_misbehaves_is_ended_with_the_reason_and_the_others_go_on(
    script: str, said: str, tmp_path: Path, workers: list[Worker]
) -> None:
    deadlines = SHORT if "did not answer within" in said else Deadlines(end=1.0 if "without ending" in said else 30.0)
    bad, good = started(script, tmp_path, workers, deadlines), started(GOOD, tmp_path, workers)
    made = in_turns({"bad": bad, "good": good, "here": Here(lambda: None, 1)}, QUICK)
    assert made["bad"].median is None
    assert re.match(f"the worker process {said}", made["bad"].error or ""), made["bad"].error
    assert (made["good"].median, made["good"].calls, made["good"].error) == (250.0, QUICK.rounds, None)
    assert made["here"].calls >= 3 * QUICK.rounds


def test_lines_of_others_are_not_looked_at(tmp_path: Path, workers: list[Worker]) -> None:
    noise = r"print('{}\n[1.0]\n' + 'x' * (20 << 20)); sys.stdout.buffer.write(b'\xff\n\n')"
    made = in_turns({"noisy": started(f"{noise}; ready(); {noise}; turns([0.5])", tmp_path, workers)}, QUICK)
    assert (made["noisy"].error, made["noisy"].median) == (None, 500.0)


def test_the_number_of_threads_is_passed_on(doubling: Path, tmp_path: Path, workers: list[Worker]) -> None:
    assert in_turns({"one": started(GOOD, tmp_path, workers)}, QUICK)["one"].mode == "3"
    assert command("onnx", doubling, tmp_path, tmp_path, 7)[-1] == "7"


def test_the_warm_up_turn_is_not_counted(tmp_path: Path, workers: list[Worker]) -> None:
    script = "ready(); [say([float(n)]) for n, line in enumerate(sys.stdin, 1)]"
    made = in_turns({"counting": started(script, tmp_path, workers)}, QUICK)["counting"]
    assert (made.median, made.calls) == (2500.0, 2)  # of turns two and three


def test_a_process_that_cannot_be_started_is_named(doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    made = measure({"eager": lambda: None}, {"lane": ("onnx", doubling)}, [INPUT], QUICK)
    assert "the worker process could not be started: [Errno 2]" in (made["lane"].error or "")
    assert made["eager"].median is not None


def test_a_worker_ends_with_its_stdin(doubling: Path, tmp_path: Path) -> None:
    torch.save((INPUT,), tmp_path / "inputs.pt")
    line = command("onnx", doubling, tmp_path / "inputs.pt", tmp_path / "outputs.pt", 1)
    done = subprocess.run([*line, str(os.getpid()), "key"], input="", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.startswith('\nkey {"mode": "onnxruntime", "seconds": ')) == (0, True)


def test_a_worker_imports_no_lightning() -> None:
    script = "import sys, lq_plugin.evaluation.latency; lq_plugin.load; print({*sys.modules} & {*sys.argv})"
    done = subprocess.run(
        [sys.executable, "-c", script, "lightning", "torchao", "hydra"], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")


linux = pytest.mark.skipif(sys.platform != "linux", reason="the system ends a process with its parent on Linux alone")


@linux
def test_a_worker_whose_parent_ended_before_it_could_ask_for_the_signal_ends(doubling: Path, tmp_path: Path) -> None:
    line = [*command("onnx", doubling, tmp_path, tmp_path, 1), "1", "key"]
    done = subprocess.run(line, stdin=subprocess.PIPE, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the process that started this one has ended\n"


PARENT = """
import sys
from pathlib import Path

import torch

from lq_plugin.evaluation.latency import Latency, measure

lanes = {name: ("onnx", Path(sys.argv[1])) for name in ("a", "b")}
measure({}, lanes, [torch.ones(2, 3)], Latency(rounds=100_000, seconds=0.01, threads=1))
"""


def states_of_children(parent: int) -> dict[int, str]:
    """States, as the kernel names them, of the processes that a process has started."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = stat.read_text().split(" (", 1)
        except OSError:  # it ended meanwhile
            continue
        state, owner = rest.rsplit(") ", 1)[1].split()[:2]
        if int(owner) == parent:
            found[int(number)] = state
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


@linux
def test_stopped_workers_end_with_a_parent_that_is_killed(doubling: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(doubling)])
    end = time.monotonic() + 60
    while "T" not in states_of_children(parent.pid).values():  # it gives turns, so all workers are ready
        assert time.monotonic() < end
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGSTOP)
    workers = list(states_of_children(parent.pid))
    try:
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        parent.kill()
        parent.wait()
        end = time.monotonic() + 10
        while any(map(alive, workers)) and time.monotonic() < end:
            time.sleep(0.05)
        assert [worker for worker in workers if alive(worker)] == []
        assert len(workers) == 2
    finally:
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)
