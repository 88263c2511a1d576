"""The processes of the benchmark: one for every preparation, and one for every runtime that is timed.

Started by ``python -m benchmarks``::

    python -m benchmarks.lane_worker prepare ort_static resnet18 FOLDER --threads 1
    python -m benchmarks.lane_worker time ort_static resnet18 FOLDER --threads 2

Each answers with a line of JSON when it is ready. For every line that it then reads (batch size and seconds), a lane
takes a turn, and answers with the turn's figures; without seconds, it compares its outputs with those of FP32.
"""

import argparse
import importlib
import json
import os
import resource
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.lanes import LANES, Opening, sqnr_db, timed
from benchmarks.preparations import PREPARATIONS, Built, Job
from benchmarks.reference_models import MODELS
from benchmarks.workers import answers

Answer = Callable[[Any], None]


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def peak_memory() -> int:
    """Peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def kernels(file: str, path: Path) -> dict[str, int] | None:
    """How many INT8 and float kernels compute convolutions, products and recurrent layers; None if not known."""
    from lq_plugin.artifacts.base import FORMATS

    chosen = FORMATS.get(file.partition("_")[0])
    if chosen is None or chosen.kernels is None:
        return None
    found = [kernel.int8 for kernel in chosen.kernels(path)]
    return {"int8": found.count(True), "float": found.count(False)}


def prepare(name: str, model: str, root: Path) -> dict[str, Any]:
    """Make a preparation's files; returns what is known of them."""
    preparation, folder = PREPARATIONS[name], root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    importlib.import_module(preparation.tool)
    began, cpu_began = time.perf_counter(), time.process_time()
    built = preparation.build(Job(MODELS[model], root, folder))
    seconds, cpu_seconds, peak = time.perf_counter() - began, time.process_time() - cpu_began, peak_memory()
    return {
        "wall_seconds": seconds,
        "peak_memory_bytes": peak,
        "settings": built.settings,
        "errors": built.errors,
        "files": {file: described(file, built, cpu_seconds, root) for file in built.files},
    }


def described(file: str, built: Built, cpu_seconds: float, root: Path) -> dict[str, Any]:
    path = built.files[file]
    return {
        "path": path.relative_to(root).as_posix(),
        "cpu_seconds": built.cpu_seconds.get(file, cpu_seconds),
        "size_bytes": size_bytes(path),
        "kernels": kernels(file, path),
    }


def take_turns(name: str, model: str, root: Path, threads: int, answer: Answer) -> None:
    """Open a lane, and for every line of stdin compare its outputs with FP32 eager, or time it."""
    lane, reference = LANES[name], MODELS[model]
    made = json.loads((root / f"{lane.preparation}.json").read_text())["files"]
    files = {file: root / each["path"] for file, each in made.items()}
    held_out, expected = reference.held_out(), torch.load(root / "eager" / "expected.pt")
    with torch.inference_mode():
        forward = lane.start(Opening(reference, root, files, threads))
        answer({})
        for line in sys.stdin:
            request = json.loads(line)
            batches = held_out.split(request["batch"])
            if request["seconds"] is None:
                got = torch.cat([forward(x).clone() for x in batches])
                answer({"sqnr_db": sqnr_db(expected, got)})
            else:
                answer(turn(timed(forward, batches[0].contiguous(), request["seconds"])))


def turn(samples: list[float]) -> dict[str, Any]:
    """The figures of a turn."""
    return {
        "median_ms": round(statistics.median(samples), 4),
        "p90_ms": round(statistics.quantiles(samples, n=10, method="inclusive")[-1], 4),
        "calls": len(samples),
        "peak_memory_bytes": peak_memory(),
    }


def end_with_parent() -> None:
    """End this process when its parent does, so that a run that is started again has the folder for itself."""

    def wait() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock would be held: OpenVINO forks, and a fork closes its copy
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["prepare", "time"])
    parser.add_argument("name", help="a preparation or a lane")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path, help="where the model's files live")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    answer = answers()
    torch.set_num_threads(args.threads)
    if args.action == "time":
        take_turns(args.name, args.model, args.folder, args.threads, answer)
    else:
        end_with_parent()
        answer(prepare(args.name, args.model, args.folder))


if __name__ == "__main__":
    main()
