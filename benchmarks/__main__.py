"""Speed of INT8, side by side: our artifacts, other tools' INT8, and FP32 on every runtime.

Run it from the repository's root, in an environment with ``lq_plugin[onnx,openvino]`` and ``nncf``::

    python -m benchmarks
    python -m benchmarks --only mlp resnet18 --batch 1 --threads 2
    python -m benchmarks --keep FOLDER --prepare
    python -m benchmarks --keep FOLDER

Quantizing, exporting and compiling take longer than timing and need no quiet machine, so ``--prepare`` does them in
advance. A run that was ended goes on where it was when it is started again. Every lane is a process of its own, and all
lanes of a model take turns, in another order in each round. A tool that is missing or fails is listed with its error.

A full run writes ``benchmarks/results/latency_ISA.json``, and from all of these ``docs/benchmarks.md`` with its plots.
"""

import argparse
import os
from datetime import datetime
from pathlib import Path

from benchmarks import cells, durations, reports
from benchmarks.cells import Plan
from benchmarks.lanes import LANES
from benchmarks.preparations import BATCHES, THREADS
from benchmarks.reference_models import MODELS
from benchmarks.workers import ROOT

QUIET = 0.5  # load of a machine on which nothing else runs


def parse_arguments() -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--lanes", nargs="+", metavar="LANE", choices=list(LANES), help=", ".join(LANES))
    parser.add_argument("--batch", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--threads", nargs="+", type=int, choices=THREADS, default=list(THREADS))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each lane (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="timed seconds a turn (default: %(default)s)")
    keep = ROOT / "build" / "benchmarks"
    parser.add_argument("--keep", type=Path, default=keep, help="where everything stays (default: build/benchmarks)")
    parser.add_argument("--prepare", action="store_true", help="make and compile everything, without timing")
    parser.add_argument("--as-prepared", action="store_true", help="time the files in --keep even if code has changed")
    parser.add_argument("--out", type=Path, help="the report (default: a full run's; for a part of it, in --keep)")
    args = parser.parse_args()
    if args.out is None and (args.only or args.lanes or args.batch != list(BATCHES) or args.threads != list(THREADS)):
        args.out = args.keep / "part.json"
    plan = Plan(
        models=[name for name in MODELS if name in (args.only or MODELS)],
        lanes=[name for name in LANES if name in (args.lanes or LANES)],
        batches=args.batch,
        threads=args.threads,
        rounds=args.rounds,
        seconds=args.seconds,
        keep=args.keep.resolve(),
        as_prepared=args.as_prepared,
    )
    return plan, args


def to_prepare(plan: Plan) -> list[tuple[str, str]]:
    """Preparations without valid files, in their order."""
    pairs = ((model, name) for model in plan.models for name in plan.preparations_of(model))
    return [(model, name) for model, name in pairs if cells.prepared(model, name, plan) is None]


def to_compile(plan: Plan) -> list[tuple[str, str, int]]:
    """Lanes whose kernels are not in the cache."""
    triples = ((model, name, n) for model in plan.models for name in plan.lanes_of(model) for n in plan.threads)
    return [each for each in triples if not cells.is_compiled(*each, plan.keep)]


def to_time(plan: Plan) -> list[tuple[str, int, list[int]]]:
    """Model, threads, and the batch sizes of its unknown cells."""
    found = []
    for model in plan.models:
        for threads in plan.threads:
            unknown = [batch for batch in plan.batches if cells.known(model, batch, threads, plan) is None]
            found.append((model, threads, unknown))
    return [each for each in found if each[2]]


def expected(plan: Plan, only_prepare: bool) -> str:
    """How long the run will take."""
    preparing = to_prepare(plan)
    changed = {model for model, _ in preparing}  # whose cells will not hold
    timing = {(model, threads, size) for model, threads, sizes in to_time(plan) for size in sizes}
    timing |= {(model, threads, size) for model in changed for threads in plan.threads for size in plan.batches}
    files = {
        "prepare": [plan.keep / model / f"{name}.json" for model, name in preparing],
        "compile": [cells.compiled_file(*each, plan.keep) for each in to_compile(plan)],
        "cell": [cells.cell_file(model, size, n, plan) for model, n, size in timing if not only_prepare],
    }
    names = {kind: [file.relative_to(plan.keep).as_posix() for file in each] for kind, each in files.items()}
    return durations.told(names, durations.known(plan.keep, reports.earlier().values()))


def say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", flush=True)


def main() -> None:
    plan, args = parse_arguments()
    say(expected(plan, args.prepare))
    for model, name in to_prepare(plan):
        found = cells.prepare(model, name, plan)
        say(f"{model}: {name} {found.get('error') or '{:.0f} s'.format(found['wall_seconds'])}")
    for model, name, threads in to_compile(plan):
        found = cells.compile_lane(model, name, threads, plan)
        say(f"{model}: {name} compiled for {threads} threads {found.get('error') or ''}")
    if args.prepare:
        return
    if (load := os.getloadavg()[0]) > QUIET:
        say(f"The load of this machine is {load:.1f}: other processes disturb what is timed now.")
    for model, threads, batches in to_time(plan):
        cells.measure(model, batches, threads, plan, say)
        reports.write(plan, args.out)  # after each: an interrupted run leaves a report
    for file in reports.write(plan, args.out):
        say(f"Wrote {file}")


if __name__ == "__main__":
    main()
