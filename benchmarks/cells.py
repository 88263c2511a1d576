"""Cells of the benchmark: what is prepared, what is timed, and what is known of both from an earlier run.

A preparation is one tool's files of one model. A cell is one model at one batch size and number of threads, with all
lanes measured in turns, because times of different moments cannot be compared. Both are kept as JSON in the model's
folder, with the digest of what they depend on.
"""

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lq_plugin
from benchmarks.lanes import LANES
from benchmarks.preparations import PREPARATIONS
from benchmarks.reference_models import MODELS
from benchmarks.workers import Worker
from lq_plugin import cpu

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "torchao", "onnx", "onnxruntime", "openvino", "nncf", "lq_plugin")
BEHIND = 1.5  # lanes that take so many times the fastest one's time get no more turns than FEW_ROUNDS
FEW_ROUNDS = 3

Result = dict[str, Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Args:
        models, lanes: names.
        batches, threads: sizes and numbers.
        rounds: turns of each lane.
        seconds: timed seconds of a turn.
        keep: where files and results stay.
        as_prepared: use files of ours that older code has made.
    """

    models: Sequence[str]
    lanes: Sequence[str]
    batches: Sequence[int]
    threads: Sequence[int]
    rounds: int
    seconds: float
    keep: Path
    as_prepared: bool = False

    def lanes_of(self, model: str) -> list[str]:
        return [name for name in self.lanes if LANES[name].applies(MODELS[model])]

    def preparations_of(self, model: str) -> list[str]:
        """Those that the lanes need, each after what it needs itself."""
        needed = {LANES[name].preparation for name in self.lanes_of(model)}
        needed |= {other for name in needed for other in PREPARATIONS[name].needs} | {"eager"}
        return [name for name in PREPARATIONS if name in needed]


def versions() -> dict[str, str | None]:
    """Of the tools that are compared; ``None`` where one is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def code(ours: bool) -> str:
    """A digest of the code and the tools that make files."""
    total = hashlib.sha256(json.dumps([versions(), cpu.isa()]).encode())
    names = ("preparations", "torchao_x86", "reference_models", "sequence_models", "vision_models")
    sources = [HERE / f"{name}.py" for name in names]
    if ours:
        sources += sorted(Path(lq_plugin.__file__).parent.rglob("*.py"))
    for source in sources:
        total.update(source.read_bytes())
    return total.hexdigest()[:16]


def prepared(model: str, name: str, plan: Plan) -> Result | None:
    """What is known of a preparation, if it still holds."""
    kept = plan.keep / model / f"{name}.json"
    if not kept.exists():
        return None
    found: Result = json.loads(kept.read_text())
    holds = found["code"] == code(PREPARATIONS[name].ours) or plan.as_prepared
    return found if holds and "error" not in found else None


def prepare(model: str, name: str, plan: Plan) -> Result:
    """Make a preparation's files in a process of its own; errors are kept, and tried again in the next run."""
    folder = plan.keep / model
    folder.mkdir(parents=True, exist_ok=True)
    command = ["-m", "benchmarks.lane_worker", "prepare", name, model, str(folder)]
    with Worker(command, folder / f"prepare_{name}.log", 1) as worker:
        found: Result = {"code": code(PREPARATIONS[name].ours), **worker.answer()}
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def identity(model: str, batch: int, threads: int, lanes: Iterable[str], plan: Plan) -> str:
    """A digest of what a cell's figures depend on: files, tools, CPU and how it is timed."""
    made = {}
    for name in sorted({LANES[lane].preparation for lane in lanes}):
        kept = plan.keep / model / f"{name}.json"
        made[name] = json.loads(kept.read_text())["code"] if kept.exists() else None
    parts = [versions(), cpu.fingerprint(), model, batch, threads, plan.rounds, plan.seconds, made]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def cell_file(model: str, batch: int, threads: int, plan: Plan) -> Path:
    """A quick look of few rounds does not replace a long one."""
    return plan.keep / model / "cells" / f"batch_{batch}_threads_{threads}_rounds_{plan.rounds}.json"


def known(model: str, batch: int, threads: int, plan: Plan) -> Result | None:
    """What a cell found before, if it still holds and has every lane that is asked for."""
    kept = cell_file(model, batch, threads, plan)
    if not kept.exists():
        return None
    cell: Result = json.loads(kept.read_text())
    holds = cell["identity"] == identity(model, batch, threads, cell["lanes"], plan)
    return cell if holds and set(plan.lanes_of(model)) <= set(cell["lanes"]) else None


def opened(stack: ExitStack, model: str, lanes: Sequence[str], threads: int, keep: Path) -> dict[str, Worker]:
    """Start a process for each lane, all at once: importing and compiling take most of the time."""
    folder = keep / model
    workers = {}
    for name in lanes:
        command = ["-m", "benchmarks.lane_worker", "time", name, model, str(folder)]
        log, cache = folder / f"time_{name}.log", str(keep / "inductor")
        workers[name] = stack.enter_context(Worker(command, log, threads, TORCHINDUCTOR_CACHE_DIR=cache))
    return workers


def refused(model: str, name: str, batch: int, threads: int, keep: Path) -> str | None:
    """Why there is nothing to open for a lane."""
    lane = LANES[name]
    kept = keep / model / f"{lane.preparation}.json"
    if not kept.exists():
        return "not prepared"
    made, file = json.loads(kept.read_text()), lane.shipped(threads, batch)
    return made.get("error") or (made["errors"].get(file, "not made") if file not in made["files"] else None)


def compiled_file(model: str, name: str, threads: int, keep: Path) -> Path:
    return keep / model / "compiled" / f"{name}_threads_{threads}.json"


def is_compiled(model: str, name: str, threads: int, keep: Path) -> bool:
    """Whether a lane that compiles was opened with its current files; others have nothing to compile."""
    done, made = compiled_file(model, name, threads, keep), keep / model / f"{LANES[name].preparation}.json"
    return not LANES[name].compiles or (done.exists() and made.exists() and done.stat().st_mtime > made.stat().st_mtime)


def compile_lane(model: str, name: str, threads: int, plan: Plan) -> Result:
    """Open a lane that compiles, so that the next start finds its kernels in the cache."""
    answer: Result = {"error": refused(model, name, plan.batches[0], threads, plan.keep)}
    began = time.perf_counter()
    if answer["error"] is None:
        with ExitStack() as stack:
            worker = opened(stack, model, [name], threads, plan.keep)[name]
            answer = worker.answer()
            for batch in plan.batches:
                answer = answer if "error" in answer else worker.turn(request(batch, None))
    found = answer | {"wall_seconds": time.perf_counter() - began}
    done = compiled_file(model, name, threads, plan.keep)
    done.parent.mkdir(exist_ok=True)
    done.write_text(json.dumps(found) + "\n")
    return found


def request(batch: int, seconds: float | None) -> str:
    return json.dumps({"batch": batch, "seconds": seconds})


def measure(model: str, batches: Sequence[int], threads: int, plan: Plan, say: Progress) -> None:
    """Open the lanes of a model and measure its cells, one after the other; each is kept as soon as it is known."""
    names = plan.lanes_of(model)
    errors = {name: refused(model, name, batches[0], threads, plan.keep) for name in names}
    began = time.perf_counter()
    with ExitStack() as stack:
        workers = opened(stack, model, [name for name in names if not errors[name]], threads, plan.keep)
        for name, worker in workers.items():
            errors[name] = worker.answer().get("error")
        for batch in batches:
            lanes = checked(workers, errors, batch)
            take_turns(workers, lanes, batch, plan)
            for name in workers:
                lanes[name] |= facts(model, name, batch, threads, plan.keep)
            seconds, began = time.perf_counter() - began, time.perf_counter()
            cell = {"identity": identity(model, batch, threads, lanes, plan), "load": os.getloadavg()[0]}
            file = cell_file(model, batch, threads, plan)
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps({**cell, "wall_seconds": seconds, "lanes": lanes}, indent=1) + "\n")
            say(f"{model}, batch {batch}, {threads} threads: {seconds:.0f} s")


def checked(workers: dict[str, Worker], errors: dict[str, str | None], batch: int) -> Result:
    """Let every lane compute the held-out samples, which also compiles what is to be compiled."""
    running = [name for name in workers if not errors[name]]
    for name in running:
        workers[name].ask(request(batch, None))
    found = {name: workers[name].answer() for name in running}
    return {name: {"error": errors[name]} if errors[name] else found[name] | {"rounds": []} for name in errors}


def take_turns(workers: dict[str, Worker], lanes: Result, batch: int, plan: Plan) -> None:
    """Time every lane once a round, in another order in each; those far behind drop out."""
    for number in range(plan.rounds):
        names = [name for name in workers if "error" not in lanes[name]]
        if number >= FEW_ROUNDS:
            quietest = {name: min(turn["median_ms"] for turn in lanes[name]["rounds"]) for name in names}
            names = [name for name in names if quietest[name] <= BEHIND * min(quietest.values())]
        shift = number % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            turn = workers[name].turn(request(batch, plan.seconds))
            if "error" in turn:
                lanes[name] = turn
            else:
                lanes[name]["rounds"].append(turn)


def facts(model: str, name: str, batch: int, threads: int, keep: Path) -> Result:
    """What preparing said of a lane's file."""
    lane = LANES[name]
    made = json.loads((keep / model / f"{lane.preparation}.json").read_text())
    file = made["files"][lane.shipped(threads, batch)]
    return {
        "size_bytes": file["size_bytes"],
        "kernels": file["kernels"],
        "build_cpu_seconds": round(file["cpu_seconds"], 2),
        "build_peak_memory_bytes": made["peak_memory_bytes"],
    }
