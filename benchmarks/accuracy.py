"""The accuracy of INT8, side by side: our algorithms, NNCF, onnxruntime's tools and torchao, against FP32.

Run it from the repository's root, in an environment with ``lq_plugin[onnx,openvino]`` and ``nncf``, and with
Fashion-MNIST (Debian's package ``dataset-fashion-mnist``, or its four IDX files in a folder)::

    python -m benchmarks.accuracy
    python -m benchmarks.accuracy --models mobile_cnn vit --data FOLDER
    python -m benchmarks.accuracy --pretrained

Every model is trained for seconds on real data. All tools calibrate on the same samples, and outputs are compared with
FP32 on samples that no training and no calibrator has seen. Every cell (one tool on one model) is a process of its own.
What a cell found is written to the folder KEEP at once; run the command again, and only cells without a result are
done, or those whose code, tools or settings have changed. Writes OUT as JSON and as Markdown, and says how long the
cells still to be done took in the report that is already there.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

import lq_plugin
from benchmarks import command_line
from benchmarks.accuracy_lanes import FLOAT, LANES, SUBJECTS
from benchmarks.accuracy_models import TRAINED
from benchmarks.accuracy_tables import markdown
from benchmarks.pretrained_models import PRETRAINED
from benchmarks.workers import Worker
from lq_plugin.recipes.fashion_mobile.data import FOLDER
from lq_plugin.report.environment import environment

HERE = Path(__file__).resolve().parent
TOOLS = ("torch", "torchao", "onnx", "onnxruntime", "openvino", "nncf")
SHARED_SOURCES = ("*_models.py", "accuracy_lanes.py", "preparations.py", "lanes.py")

Result = dict[str, Any]


def lanes_of(model: str) -> list[str]:
    """The lanes that run for a model; FP32 first, because the others need what it writes."""
    schemes = set(SUBJECTS[model].schemes)
    return [name for name, lane in LANES.items() if schemes & set(lane.schemes)]


def versions() -> dict[str, str | None]:
    """Of the tools that are compared; ``None`` where one is missing."""
    found: dict[str, str | None] = dict.fromkeys(TOOLS)
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def sources(lane: str) -> Iterator[Path]:
    """The code that a cell depends on."""
    for pattern in SHARED_SOURCES:
        yield from sorted(HERE.glob(pattern))
    if LANES[lane].ours:
        yield from sorted(Path(lq_plugin.__file__).parent.rglob("*.py"))


def identity(lane: str, threads: int) -> str:
    """A digest of everything that a cell's result depends on, except for the data and the CPU."""
    total = hashlib.sha256(json.dumps([versions(), threads]).encode())
    for source in sources(lane):
        total.update(source.read_bytes())
    return total.hexdigest()


def known(model: str, lane: str, args: argparse.Namespace) -> Result | None:
    """What the cell found before, if it still holds."""
    kept = args.keep / model / f"{lane}.json"
    if not kept.exists():
        return None
    cell = json.loads(kept.read_text())
    return cell if cell["identity"] == identity(lane, args.threads) and "error" not in cell else None


def run(model: str, lane: str, args: argparse.Namespace) -> Result:
    """Run a cell and keep its result, errors included: those are tried again in the next run."""
    folder = args.keep / model
    folder.mkdir(parents=True, exist_ok=True)
    command = ["-m", "benchmarks.accuracy_lanes", lane, model, str(folder.resolve()), "--data", str(args.data)]
    digest, began = identity(lane, args.threads), time.perf_counter()
    with Worker(command, folder / f"{lane}.log", args.threads) as worker:
        cell = worker.answer()
    cell |= {"identity": digest, "wall_seconds": round(time.perf_counter() - began, 1)}
    (folder / f"{lane}.json").write_text(json.dumps(cell, indent=1) + "\n")
    return cell


def expected(cells: list[tuple[str, str]], out: Path) -> str:
    """How long cells took in an earlier report."""
    report = out.with_suffix(".json")
    models = json.loads(report.read_text())["models"] if report.exists() else {}
    took = [models.get(model, {}).get(lane, {}).get("wall_seconds") for model, lane in cells]
    seconds = [each for each in took if each is not None]
    return f"{len(cells)} cells to do; for {len(seconds)} of them, {report.name} says {sum(seconds) / 60:.0f} minutes"


def parse_arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__, SUBJECTS, "accuracy")
    parser.set_defaults(models=None, threads=1)
    parser.add_argument("--lanes", nargs="+", choices=list(LANES), default=list(LANES))
    parser.add_argument("--pretrained", action="store_true", help="the pretrained models too; says what they need")
    parser.add_argument("--data", type=Path, default=Path(FOLDER), help="Fashion-MNIST (default: %(default)s)")
    keep = HERE.parent / "build" / "accuracy"
    parser.add_argument("--keep", type=Path, default=keep, help="where cells and models stay (default: build/accuracy)")
    args = parser.parse_args()
    args.models = args.models or [*TRAINED, *(PRETRAINED if args.pretrained else ())]
    args.lanes = list(dict.fromkeys([FLOAT, *args.lanes]))
    return args


def main() -> None:
    args = parse_arguments()
    console = Console()
    cells = [(model, lane) for model in SUBJECTS for lane in lanes_of(model)]
    found = {cell: known(*cell, args) for cell in cells}
    asked = [(model, lane) for model, lane in cells if model in args.models and lane in args.lanes]
    todo = [cell for cell in asked if found[cell] is None]
    console.print(expected(todo, args.out))
    for cell in todo:
        if cell[1] != FLOAT and "error" in (found[cell[0], FLOAT] or {}):
            continue
        found[cell] = done = run(*cell, args)
        console.print(told(*cell, done), markup=False, highlight=False)
        write(found, args)  # after each: an interrupted run leaves a report
    write(found, args)
    console.print(f"Wrote {args.out.with_suffix('.json')} and {args.out.with_suffix('.md')}")


def write(found: dict[tuple[str, str], Result | None], args: argparse.Namespace) -> None:
    """Write what is known, of models and lanes that were not asked for too."""
    models: dict[str, Result] = {}
    missing: dict[str, list[str]] = {}
    for (model, lane), cell in found.items():
        if cell is None:
            missing.setdefault(model, []).append(lane)
        else:
            models.setdefault(model, {})[lane] = cell
    facts = asdict(environment()) | {"versions": versions(), "threads": args.threads}
    report = {"environment": facts, "models": models, "missing": missing}
    command_line.write(report, markdown(report), args.out)


def told(model: str, lane: str, cell: Result) -> str:
    """One line for a cell that has just been done."""
    found = cell.get("error") or ", ".join(
        f"{runtime} {figures['sqnr_db'] or float('inf'):.1f} dB" for runtime, figures in cell["runtimes"].items()
    )
    return f"{model} {lane}: {found} ({cell['wall_seconds']:.0f} s)"


if __name__ == "__main__":
    main()
