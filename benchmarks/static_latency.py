"""Static INT8, side by side: our artifacts, each runtime's own calibrator, and FP32 on every runtime.

Run it from anywhere, in an environment with ``lq_plugin[onnx,openvino]`` and ``nncf``::

    python benchmarks/static_latency.py
    python benchmarks/static_latency.py --models resnet18 unet --rounds 9 --threads 4 --out latency.json

Quantizing and compiling take longer than timing and need no quiet machine, so they can be done in advance::

    python benchmarks/static_latency.py --keep FOLDER --prepare
    python benchmarks/static_latency.py --keep FOLDER

Every lane is a process of its own. Lanes take turns, in a different order in each round. All runtimes get the same
number of threads and the same calibration data. Two ratios are given: the median of the ratios within rounds, in which
noise that outlasts a round cancels out, and the ratio of the lanes' quietest (fastest) rounds, for a machine that
others use in bursts. If the two disagree, run more rounds. A tool that is missing or fails is listed with its error.
Writes OUT as JSON (every sample) and as Markdown (the tables).
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import command_line
from reference_models import CALIBRATION_SAMPLES, MODELS
from rich.console import Console
from rich.progress import track
from static_lanes import LANES, PREPARATIONS, cpu_isa, has_wide_accumulation
from static_tables import markdown, print_model
from workers import Worker

import lq_plugin

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "torchao", "onnx", "onnxruntime", "openvino", "nncf", "lq_plugin")
FP32_LANES = tuple(name for name, lane in LANES.items() if not lane.int8)
OUR_LANES = tuple(name for name, lane in LANES.items() if lane.preparation == "ours")
THEIR_LANES = tuple(name for name in LANES if name not in FP32_LANES + OUR_LANES)
OWN_TOOLS = (
    ("ours_onnx", "ort_static"),
    ("ours_openvino", "nncf"),
    ("ours_openvino", "nncf_default"),
    ("ours_pt2", "torchao"),
)

Result = dict[str, Any]


def worker(action: str, name: str, model: str, folder: Path, threads: int) -> Worker:
    """Start ``static_lanes.py`` in a process of its own."""
    command = [str(HERE / "static_lanes.py"), action, name, model, str(folder)]
    return Worker(command, folder / f"{action}_{name}.log", threads, TORCHINDUCTOR_CACHE_DIR=str(folder / "inductor"))


def newest_source(preparation: str) -> float:
    """When the code that makes these files was last changed."""
    files = [*HERE.glob("*_models.py"), HERE / "static_lanes.py"]
    if preparation == "ours":
        files += Path(lq_plugin.__file__).parent.rglob("*.py")
    return max(file.stat().st_mtime for file in files)


def prepare(model: str, folder: Path, threads: int) -> Result:
    """Make the files of every lane, except those in the folder that were made by the current code."""
    folder.mkdir(parents=True, exist_ok=True)
    prepared: Result = {}
    for name in track(PREPARATIONS, f"{model}: prepare", transient=True):
        done = folder / f"{name}.json"
        if not done.exists() or done.stat().st_mtime < newest_source(name):
            with worker("prepare", name, model, folder, threads) as preparing:
                done.write_text(json.dumps(preparing.answer()))
        prepared[name] = json.loads(done.read_text())
    return prepared


def run_model(model: str, folder: Path, args: argparse.Namespace) -> Result:
    """Prepare the lanes of one model, open them, and let them take turns."""
    prepared = prepare(model, folder, args.threads)
    lanes: Result = {}
    with ExitStack() as stack:
        workers = {}
        for name in args.lanes:  # all at once: importing and compiling take most of the time
            if "error" not in prepared[LANES[name].preparation]:
                workers[name] = stack.enter_context(worker("time", name, model, folder, args.threads))
        for name in track(args.lanes, f"{model}: open", transient=True):
            opened = workers[name].answer() if name in workers else prepared[LANES[name].preparation]
            lanes[name] = {"rounds_ms": [], **opened}
        if not args.prepare:
            take_turns(model, workers, lanes, args)
    lanes = {name: summarize(lane) for name, lane in lanes.items()}
    settings = {name: result for name, result in prepared.items() if result and "error" not in result}
    return {"batch_size": MODELS[model].batch_size, "settings": settings, "lanes": lanes, "ratios": ratios(lanes)}


def take_turns(model: str, workers: dict[str, Worker], lanes: Result, args: argparse.Namespace) -> None:
    """Time every lane once a round; FP32 in the first rounds only, because its difference is larger than noise."""
    for turn in track(range(args.rounds), f"{model}: rounds", transient=True):
        names = [name for name in workers if name not in FP32_LANES or turn < args.fp32_rounds]
        shift = turn % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            if "error" not in lanes[name]:
                samples = workers[name].turn(str(args.seconds))
                if isinstance(samples, dict):
                    lanes[name] = samples
                else:
                    lanes[name]["rounds_ms"].append(samples)


def summarize(lane: Result) -> Result:
    """Add the median over the rounds of each round's median and p90, and the least median."""
    if "error" in lane or not lane["rounds_ms"]:
        return lane
    medians = [statistics.median(samples) for samples in lane["rounds_ms"]]
    p90s = [statistics.quantiles(samples, n=10, method="inclusive")[-1] for samples in lane["rounds_ms"]]
    figures = {"median_ms": statistics.median(medians), "p90_ms": statistics.median(p90s), "quietest_ms": min(medians)}
    return {**figures, **lane}


def ratio(lanes: Result, above: str, below: str) -> Result:
    """Ratio of two lanes' times: within the rounds in which both took part, and between their quietest rounds."""
    pairs = zip(lanes[above]["rounds_ms"], lanes[below]["rounds_ms"], strict=False)
    return {
        "lanes": [above, below],
        "ratio": statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs),
        "quietest": lanes[above]["quietest_ms"] / lanes[below]["quietest_ms"],
    }


def fastest(lanes: Result, names: tuple[str, ...]) -> str | None:
    """The lane of least median among those that ran."""
    ran = (name for name in names if "median_ms" in lanes.get(name, {}))
    return min(ran, key=lambda name: lanes[name]["median_ms"], default=None)


def ratios(lanes: Result) -> Result:
    """The figures to watch: ours against theirs (below 1: ours is faster), FP32 against INT8 (above 1: a gain)."""
    best_fp32, best_ours, best_theirs = (fastest(lanes, names) for names in (FP32_LANES, OUR_LANES, THEIR_LANES))
    wanted: dict[str, tuple[str | None, str | None]] = {f"{ours} / {own}": (ours, own) for ours, own in OWN_TOOLS}
    wanted |= {
        "best ours / best of the others' INT8": (best_ours, best_theirs),
        "best FP32 runtime / best artifact of ours": (best_fp32, best_ours),
        "best FP32 runtime / best of the others' INT8": (best_fp32, best_theirs),
    }
    return {
        title: ratio(lanes, above, below)
        for title, (above, below) in wanted.items()
        if above and below and {"median_ms"} <= lanes.get(above, {}).keys() & lanes.get(below, {}).keys()
    }


def installed(package: str) -> str | None:
    """The version of a package, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(args: argparse.Namespace) -> Result:
    """What the figures depend on."""
    return {
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        "machine": platform.machine(),
        "isa": cpu_isa(),
        "wide_accumulation": has_wide_accumulation(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "rounds": args.rounds,
        "fp32_rounds": args.fp32_rounds,
        "seconds_per_turn": args.seconds,
        "calibration_samples": CALIBRATION_SAMPLES,
    }


def parse_arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__, MODELS, "static_latency")
    parser.add_argument("--lanes", nargs="+", choices=list(LANES), default=list(LANES))
    parser.add_argument("--rounds", type=int, default=15, help="turns of each lane (default: %(default)s)")
    parser.add_argument("--fp32-rounds", type=int, default=3, help="turns of the FP32 lanes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="timed seconds a turn (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="where the models' files stay for the next run (default: temporary)")
    parser.add_argument("--prepare", action="store_true", help="make and open the files in --keep, without timing")
    args = parser.parse_args()
    if args.prepare and args.keep is None:
        parser.error("--prepare: without --keep the files would be lost. Add --keep FOLDER.")
    return args


def main() -> None:
    args = parse_arguments()
    console = Console()
    report: Result = {"environment": environment(args), "models": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for model in args.models:
            report["models"][model] = run_model(model, (args.keep or Path(temporary)) / model, args)
            print_model(console, model, report["models"][model])
            if not args.prepare:
                command_line.write(
                    report, markdown(report), args.out
                )  # after each model: an interrupted run keeps what it measured
    if not args.prepare:
        console.print(f"Wrote {args.out.with_suffix('.json')} and {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
