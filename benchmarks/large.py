"""Large models: time and memory from the float model to a loaded artifact, against layers, samples and formats.

Run it from the repository's root, in an environment with ``lq_plugin[onnx,openvino]``::

    python -m benchmarks.large
    python -m benchmarks.large --only 24-16-onnx-plain --out build/large.json

The model is a transformer encoder of the width of BERT-large with random weights; with 24 layers it has 350 million
parameters. Every cell is a process of its own: it builds the model, quantizes it, exports it in one format, loads the
artifact and runs it. Memory is the peak of what is resident in that process, from ``getrusage``, with Python, torch and
the libraries in it; seconds are CPU time of the process, which other processes disturb least. A run that was ended goes
on where it was: cells stay in ``--keep``. Writes OUT as JSON, as Markdown and as a plot.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lq_plugin
from benchmarks import command_line, large_tables
from benchmarks.reference_models import SEED
from benchmarks.workers import ROOT, Worker, answers
from lq_plugin import Scheme
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.report.environment import environment

WIDTH, HEADS, VOCABULARY, LENGTH, BATCH = 1024, 16, 50_000, 64, 4
LAYERS = (2, 6, 12, 24)
SAMPLES, MORE_SAMPLES = 16, (8, 16, 32)  # where layers vary; at LAYERS_OF_SAMPLES layers
LAYERS_OF_SAMPLES = 6
LEARNT_FROM = 32  # samples: with fewer, no algorithm is tried
FORMATS = ("onnx", "openvino", "pt2")

Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One process.

    Args:
        layers: of the encoder.
        samples: that are calibrated with.
        format: of the artifact.
        algorithms: ``plain``: none. ``auto``: the default ones, with their default time limit.
        vocabulary: rows of the embedding; more than the default ones stay float, so that weights exceed 2 GB.
        width: of the encoder.
    """

    layers: int
    samples: int
    format: str
    algorithms: str = "plain"
    vocabulary: int = VOCABULARY
    width: int = WIDTH

    @property
    def name(self) -> str:
        """Names its file; what is not the default is appended."""
        sizes = [str(size) for size, usual in ((self.vocabulary, VOCABULARY), (self.width, WIDTH)) if size != usual]
        return "-".join([str(self.layers), str(self.samples), self.format, self.algorithms, *sizes])


BEYOND_2_GB = Cell(2, SAMPLES, "onnx", vocabulary=550_000)  # 590 million parameters
# The large model first: an interrupted run answers the main question.
CELLS = tuple(
    dict.fromkeys(
        [
            *(Cell(layers, SAMPLES, name) for layers in (max(LAYERS), *LAYERS[:-1]) for name in FORMATS),
            BEYOND_2_GB,
            *(Cell(LAYERS_OF_SAMPLES, samples, name) for samples in MORE_SAMPLES for name in FORMATS),
            *(Cell(layers, LEARNT_FROM, "onnx", "auto") for layers in LAYERS),
        ]
    )
)


class Encoder(nn.Module):
    """A transformer encoder for sequences of tokens ``(N, T)``; scores of 100 classes of their mean."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.embedding = nn.Embedding(cell.vocabulary, cell.width)
        # Not nn.TransformerEncoder, whose layers begin as copies: equal weights are stored once.
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(cell.width, HEADS, 4 * cell.width, dropout=0.0, batch_first=True)
                for _ in range(cell.layers)
            )
        )
        self.head = nn.Linear(cell.width, 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(x)).mean(1))


@dataclass
class Meter:
    """What each step took, and the peak memory of this process when it had ended."""

    steps: dict[str, Result] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step."""
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        yield
        after, unit = resource.getrusage(resource.RUSAGE_SELF), 1 if sys.platform == "darwin" else 1024
        self.steps[name] = {
            "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "wall_seconds": time.perf_counter() - start,
            "peak_memory_bytes": after.ru_maxrss * unit,
        }


def measure(cell: Cell, folder: Path) -> Result:
    """Do everything that a cell asks for, in this process."""
    torch.manual_seed(SEED)
    meter = Meter()
    with meter.step("model"):
        model = Encoder(cell).eval()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        sizes = [BATCH] * (cell.samples // BATCH)
        batches = [torch.randint(cell.vocabulary, (size, LENGTH)) for size in sizes]
        held_out = torch.randint(cell.vocabulary, (BATCH, LENGTH))
        with torch.no_grad():
            wanted = model(held_out)
    with meter.step("quantize"):
        algorithms = "auto" if cell.algorithms == "auto" else ()
        scheme = Scheme(algorithms=algorithms, embeddings=cell.vocabulary == VOCABULARY)
        candidate = lq_plugin.quantize(model, batches, scheme)
    with meter.step("export"):
        artifact = lq_plugin.export(candidate, folder, [cell.format], threads=torch.get_num_threads())[cell.format]
    with meter.step("load"):
        noise = SignalToQuantizationNoise()
        noise.update(lq_plugin.load(artifact.path, threads=torch.get_num_threads())(held_out), wanted)
    learning = candidate.learning
    kept = {"artifact.json", *artifact.files}
    return {
        "parameters": parameters,
        "steps": meter.steps,
        "sqnr_db": noise.compute().item(),
        "files": {file.name: file.stat().st_size for file in sorted(artifact.path.iterdir()) if file.name in kept},
        "steps_of_algorithms": [asdict(step) for step in learning.steps] if learning else [],
    }


def work(cell: Cell, threads: int) -> None:
    """Measure one cell, in its own process."""
    answer = answers()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        answer(measure(cell, Path(folder)))


def run(cell: Cell, keep: Path, threads: int) -> Result:
    """Measure one cell in a process of its own, and keep what it answers."""
    file = keep / f"{cell.name}.json"
    if file.exists():
        return dict(json.loads(file.read_text()))
    keep.mkdir(parents=True, exist_ok=True)
    command = ["-m", "benchmarks.large", "--work", json.dumps(asdict(cell))]
    with Worker(command, keep / f"{cell.name}.log", threads) as worker:
        found = {**asdict(cell), **worker.answer()}
    if "error" not in found:  # which the next run tries again
        scratch = file.with_suffix(".part")
        scratch.write_text(json.dumps(found, indent=1) + "\n")
        scratch.replace(file)
    return found


def told(cell: Cell, found: Result) -> str:
    """What a cell took, on one line."""
    if "error" in found:
        return f"{cell.name}: {found['error']}"
    seconds = sum(step["cpu_seconds"] for step in found["steps"].values())
    return f"{cell.name}: {found['steps']['load']['peak_memory_bytes'] / 2**30:.1f} GiB, {seconds:.0f} s of CPU time"


def known(keep: Path) -> list[Result]:
    """Every cell that was measured, asked for in this run or not."""
    files = (keep / f"{cell.name}.json" for cell in CELLS)
    return [json.loads(file.read_text()) for file in files if file.exists()]


def report_of(cells: list[Result], threads: int) -> Result:
    facts = asdict(environment())
    return {"environment": facts, "threads": threads, "length": LENGTH, "batch": BATCH, "cells": cells}


def write(cells: list[Result], args: argparse.Namespace) -> None:
    """Write the report, its tables and its plot."""
    report = report_of(cells, args.threads)
    report["missing"] = [cell.name for cell in CELLS if not (args.keep / f"{cell.name}.json").exists()]
    command_line.write(report, large_tables.markdown(report, f"{args.out.stem}.svg"), args.out)
    args.out.with_suffix(".svg").write_text(large_tables.plot(report))


def parse_arguments() -> argparse.Namespace:
    names = [cell.name for cell in CELLS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, metavar="CELL", default=names, help=", ".join(names))
    parser.add_argument("--threads", type=int, default=1, help="of torch and of each runtime (default: %(default)s)")
    keep = ROOT / "build" / "large"
    parser.add_argument("--keep", type=Path, default=keep, help="where cells stay (default: build/large)")
    parser.add_argument("--again", action="store_true", help="measure cells that are known, too")
    parser.add_argument("--out", type=Path, default=command_line.RESULTS / "large.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.work:
        work(Cell(**json.loads(args.work)), args.threads)
        return
    if args.again:
        shutil.rmtree(args.keep, ignore_errors=True)
    failed: list[Result] = []
    for cell in CELLS:
        if cell.name in args.only:
            found = run(cell, args.keep.resolve(), args.threads)
            failed += [found] if "error" in found else []
            print(f"{datetime.now():%H:%M:%S} {told(cell, found)}; load {os.getloadavg()[0]:.1f}", flush=True)
            write([*known(args.keep), *failed], args)  # after each: an interrupted run leaves a report


if __name__ == "__main__":
    main()
