"""Static INT8, side by side: our artifacts, each runtime's own calibrator, and FP32 on every runtime.

Run it from anywhere, in an environment with ``lq_plugin[onnx,openvino]`` and ``nncf``::

    python benchmarks/static_latency.py
    python benchmarks/static_latency.py --models resnet18 --rounds 3 --threads 4 --out latency.json

Every turn of a lane is a fresh process; the lanes take turns, in another order each round; all runtimes get the
same number of threads and the same calibration data. Two ratios are given: the median of the ratios within the
rounds, in which noise that outlasts a round cancels out, and that of each lane's quietest round, for a machine that
others use in bursts. Where the two disagree, run more rounds. A tool that is missing or fails is listed with its error.
Writes OUT as JSON (every sample) and as Markdown (the tables).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from reference_models import CALIBRATION_SAMPLES, MODELS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from static_lanes import LANES, PREPARATIONS, cpu_isa

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "torchao", "onnx", "onnxruntime", "openvino", "nncf", "lq_plugin")
HEADERS = ("lane", "median ms", "p90 ms", "quietest ms", "FP32 eager / this", "SQNR dB", "MB")
RATIO_HEADERS = ("ratio of times", "lanes", "within rounds", "quietest")
FP32_LANES = tuple(name for name, lane in LANES.items() if not lane.int8)
OUR_LANES = tuple(name for name, lane in LANES.items() if lane.preparation == "ours")
THEIR_LANES = tuple(name for name in LANES if name not in FP32_LANES + OUR_LANES)

Result = dict[str, Any]


def start_worker(action: str, name: str, model: str, folder: Path, args: argparse.Namespace) -> Result:
    """Run ``static_lanes.py`` in a process of its own; a failure comes back as ``{"error": …}``."""
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "static_lanes.py"), action, name, model, str(folder)]
    command += ["--threads", str(args.threads), "--seconds", str(args.seconds), "--result", str(result)]
    threads = dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS"], str(args.threads))
    finished = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        return dict(json.loads(result.read_text()))
    lines = finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"]
    return {"error": lines[-1][:300]}


def run_model(model: str, folder: Path, args: argparse.Namespace) -> Result:
    """Prepare every lane of one model, then let the lanes take turns."""
    folder.mkdir(parents=True)
    preparations = {
        name: start_worker("prepare", name, model, folder, args)
        for name in track(PREPARATIONS, f"{model}: prepare", transient=True)
    }
    ready = [name for name, lane in LANES.items() if "error" not in preparations[lane.preparation]]
    lanes: Result = {name: {"error": preparations[LANES[name].preparation]["error"]} for name in LANES.keys() - ready}
    for turn in track(range(args.rounds), f"{model}: rounds", transient=True):
        shift = turn % max(len(ready), 1)
        for name in ready[shift:] + ready[:shift]:
            if "error" in lanes.get(name, {}):
                continue
            outcome = start_worker("time", name, model, folder, args)
            if "error" in outcome:
                lanes[name] = outcome
            else:
                rounds = lanes.setdefault(name, {"rounds_ms": []})["rounds_ms"]
                rounds.append(outcome.pop("samples_ms"))
                lanes[name].update(outcome)
    lanes = {name: summarize(lanes[name]) for name in LANES if name in lanes}
    settings = {name: result for name, result in preparations.items() if result and "error" not in result}
    return {"batch_size": MODELS[model].batch_size, "settings": settings, "lanes": lanes, "ratios": ratios(lanes)}


def summarize(lane: Result) -> Result:
    """Add the median over the rounds of each round's median and p90, and the least median."""
    if "error" in lane:
        return lane
    medians = [statistics.median(samples) for samples in lane["rounds_ms"]]
    p90s = [statistics.quantiles(samples, n=10)[-1] for samples in lane["rounds_ms"]]
    figures = {"median_ms": statistics.median(medians), "p90_ms": statistics.median(p90s), "quietest_ms": min(medians)}
    return {**figures, **lane}


def ratio(lanes: Result, above: str, below: str) -> float:
    """Time of one lane over that of another, paired within the rounds."""
    pairs = zip(lanes[above]["rounds_ms"], lanes[below]["rounds_ms"], strict=True)
    return statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)


def fastest(lanes: Result, names: tuple[str, ...]) -> str | None:
    """The lane of least median among those that ran."""
    return min((n for n in names if "median_ms" in lanes[n]), key=lambda n: lanes[n]["median_ms"], default=None)


def ratios(lanes: Result) -> Result:
    """The figures to watch: ours against theirs (below 1: ours is faster), FP32 against INT8 (above 1: a gain)."""
    best_fp32, best_ours, best_theirs = (fastest(lanes, names) for names in (FP32_LANES, OUR_LANES, THEIR_LANES))
    wanted = {
        "ours_onnx / ort_static": ("ours_onnx", "ort_static"),
        "ours_openvino / nncf": ("ours_openvino", "nncf"),
        "best ours / best of the others' INT8": (best_ours, best_theirs),
        "best FP32 runtime / best artifact of ours": (best_fp32, best_ours),
        "best FP32 runtime / best of the others' INT8": (best_fp32, best_theirs),
    }
    return {
        title: {
            "lanes": list(pair),
            "ratio": ratio(lanes, *pair),
            "quietest": lanes[pair[0]]["quietest_ms"] / lanes[pair[1]]["quietest_ms"],
        }
        for title, pair in wanted.items()
        if all(name and "median_ms" in lanes[name] for name in pair)
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
        "cores": os.cpu_count(),
        "threads": args.threads,
        "rounds": args.rounds,
        "seconds_per_turn": args.seconds,
        "calibration_samples": CALIBRATION_SAMPLES,
    }


def rows(lanes: Result) -> list[tuple[str, ...]]:
    """The table of one model as text."""
    lines = []
    for name, lane in lanes.items():
        if "error" in lane:
            lines.append((LANES[name].label, "failed", *[""] * (len(HEADERS) - 2)))
            continue
        speedup = f"{ratio(lanes, 'fp32_eager', name):.2f}" if "median_ms" in lanes["fp32_eager"] else ""
        sqnr = f"{lane['sqnr_db']:.1f}" if LANES[name].int8 and lane["sqnr_db"] is not None else ""
        times = (f"{lane[key]:.2f}" for key in ("median_ms", "p90_ms", "quietest_ms"))
        lines.append((LANES[name].label, *times, speedup, sqnr, f"{lane['size_bytes'] / 1e6:.1f}"))
    return lines


def ratio_rows(result: Result) -> list[tuple[str, ...]]:
    """The ratios of one model as text."""
    return [
        (title, " / ".join(figure["lanes"]), f"{figure['ratio']:.2f}", f"{figure['quietest']:.2f}")
        for title, figure in result["ratios"].items()
    ]


def failures(lanes: Result) -> list[str]:
    """One line a lane that failed."""
    return [f"{LANES[name].label} failed: {lane['error']}" for name, lane in lanes.items() if "error" in lane]


def rich_table(title: str, headers: tuple[str, ...], body: list[tuple[str, ...]]) -> Table:
    """A table for the terminal, first column left, the others right."""
    table = Table(title=title)
    for header in headers:
        table.add_column(header, justify="left" if header == headers[0] else "right")
    for row in body:
        table.add_row(*row)
    return table


def print_model(console: Console, model: str, result: Result) -> None:
    """The tables of one model, and what failed."""
    console.print(rich_table(f"{model}, batch {result['batch_size']}", HEADERS, rows(result["lanes"])))
    for line in failures(result["lanes"]):
        console.print(line, style="red", markup=False)
    console.print(rich_table("", RATIO_HEADERS, ratio_rows(result)))


def markdown(report: Result) -> str:
    """The report as Markdown tables."""
    facts = report["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    lines = [
        "# Static INT8, side by side",
        "",
        f"{facts['machine']} with {', '.join(facts['isa'])}; {facts['threads']} threads on {facts['cores']} cores; "
        f"{facts['rounds']} rounds of {facts['seconds_per_turn']:g} s; {versions}.",
    ]
    for model, result in report["models"].items():
        lines += ["", f"## {model}, batch {result['batch_size']}", ""]
        lines += markdown_table(HEADERS, rows(result["lanes"]))
        lines += ["", *(f"{line}  " for line in failures(result["lanes"])), ""]
        lines += markdown_table(RATIO_HEADERS, ratio_rows(result))
    return "\n".join(lines) + "\n"


def markdown_table(headers: tuple[str, ...], body: list[tuple[str, ...]]) -> list[str]:
    """The lines of a table, first column left, the others right."""
    ruler = ("---", *("---:" for _ in headers[1:]))
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (headers, ruler, *body)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each lane (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds a turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each runtime (default: all cores)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "static_latency.json")
    parser.add_argument("--keep", type=Path, help="an empty folder for the models' files (default: temporary)")
    return parser.parse_args()


def write(report: Result, out: Path) -> None:
    """Write the report as JSON and as Markdown."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(report))


def main() -> None:
    args = parse_arguments()
    console = Console()
    report: Result = {"environment": environment(args), "models": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for model in args.models:
            report["models"][model] = run_model(model, (args.keep or Path(temporary)) / model, args)
            print_model(console, model, report["models"][model])
            write(report, args.out)  # after each model: an interrupted run keeps what it measured
    console.print(f"Wrote {args.out.with_suffix('.json')} and {args.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
