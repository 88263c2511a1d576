"""What observing costs: validation with ``StaticQuantization``, compared with the same validation without it.

Run it from the repository's root, in an environment with ``lq_plugin``::

    python -m benchmarks.observing
    python -m benchmarks.observing --models mnist_cnn --passes 9 --threads 1 --out observing.json

Every lane (no callback, ``minmax``, ``histogram``) is a ``Trainer.fit`` in a process of its own. One training step
comes before each validation pass, so that weights change as they do in training. The lanes take turns, pass by pass.
The first pass captures the graph. It is not part of the ratios, but its extra time is reported. Writes OUT as JSON
(every pass) and as Markdown.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lq_plugin
from benchmarks import command_line
from benchmarks.reference_models import SEED, images
from benchmarks.vision_models import ResNet18
from benchmarks.workers import Worker, answers

BATCH_SIZE = 64
BOUNDS = {"minmax": 1.15, "histogram": 1.25}
PLAIN = "plain"

Result = dict[str, Any]


def mnist_cnn() -> nn.Module:
    """Four convolutions for images of MNIST's size, like those of the recipe ``mnist_cnn``."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64), (64, 128), (128, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if outputs < 128 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # how to build it; channels and size of its images
    "mnist_cnn": (mnist_cnn, 1, 28),
    "resnet18": (lambda: ResNet18(classes=10), 3, 32),
}


class Classifier(LightningModule):
    """What is trained and validated."""

    def __init__(self, net: nn.Module, turns: "Turns") -> None:
        super().__init__()
        self.net, self.turns = net, turns

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def on_validation_end(self) -> None:
        self.turns.end()  # called after the callbacks' hooks

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Turns(Callback):
    """Waits for a line on stdin before each epoch, and answers with the seconds of its validation.

    It is the first callback, and it waits before the training step, so that nothing runs while others take their turns.
    """

    def __init__(self) -> None:
        self._answer = answers()
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if not sys.stdin.readline():
            raise KeyboardInterrupt  # no more turns: Lightning ends the run

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._start = time.perf_counter()

    def end(self) -> None:
        """Answer."""
        self._answer(time.perf_counter() - self._start)


def work(model: str, lane: str, args: argparse.Namespace) -> None:
    """Run a lane, in its own process."""
    turns = Turns()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    warnings.filterwarnings("ignore", ".*num_workers|.*The number of training batches")
    build, channels, size = MODELS[model]
    x = images(args.samples, torch.Generator().manual_seed(SEED), size)[:, :channels]
    data = TensorDataset(x.contiguous(), torch.randint(10, (args.samples,)))
    observing = [] if lane == PLAIN else [lq_plugin.StaticQuantization(observer=lane)]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        limit_train_batches=1,
        num_sanity_val_steps=0,
        callbacks=[turns, *observing],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(data, BATCH_SIZE, shuffle=True), DataLoader(data, BATCH_SIZE)
    trainer.fit(Classifier(build(), turns), *loaders)


def turn(worker: Worker) -> float:
    """Let a lane run one pass, and return its seconds."""
    answer = worker.turn("")
    if isinstance(answer, dict):
        raise SystemExit(f"A lane ended: {answer['error']}")
    return float(answer)


def run_model(model: str, args: argparse.Namespace) -> Result:
    """Let the lanes of one model take turns."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers = {}
        for lane in (PLAIN, *BOUNDS):
            command = ["-m", "benchmarks.observing", "--work", model, lane, "--samples", str(args.samples)]
            workers[lane] = stack.enter_context(Worker(command, Path(folder) / f"{lane}.log", args.threads))
        passes: dict[str, list[float]] = {lane: [turn(worker)] for lane, worker in workers.items()}
        names = list(workers)
        for number in track(range(args.passes), model, transient=True):
            shift = number % len(names)
            for lane in names[shift:] + names[:shift]:
                passes[lane].append(turn(workers[lane]))
    return {
        "passes_s": passes,
        "lanes": {lane: figures(passes[lane], passes[PLAIN]) for lane in passes},
    }


def figures(own: list[float], plain: list[float]) -> Result:
    """The figures of a lane: its passes after the first, compared with the plain passes of the same rounds."""
    return {
        "median_s": statistics.median(own[1:]),
        "ratio": statistics.median(a / b for a, b in zip(own[1:], plain[1:], strict=True)),
        "quietest": min(own[1:]) / min(plain[1:]),
        "capture_s": own[0] - statistics.median(own[1:]),
    }


def markdown(report: Result) -> str:
    """The report as a Markdown table; a ratio above its bound is in bold."""
    lines = [
        "# What observing costs",
        "",
        f"{report['samples']} validation samples in batches of {BATCH_SIZE}, {report['observed']} of them observed; "
        f"{report['threads']} threads on {report['cores']} cores, {report['machine']}; medians of {report['passes']} "
        f"passes, after a first one that captures the graph; torch {torch.__version__}.",
        "",
        "| model | observer | pass in s | / plain | quietest | bound | first pass, more in s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model, result in report["models"].items():
        for lane, own in result["lanes"].items():
            bound = BOUNDS.get(lane)
            ratio = f"{own['ratio']:.3f}"
            cells = [model, lane, f"{own['median_s']:.2f}", f"**{ratio}**" if bound and own["ratio"] > bound else ratio]
            cells += [f"{own['quietest']:.3f}", f"{bound:.2f}" if bound else "", f"{own['capture_s']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__, MODELS, "observing")
    parser.add_argument("--samples", type=int, default=5000, help="validation samples (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=5, help="timed passes of each lane (default: %(default)s)")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.work:
        work(*args.work, args)
        return
    report: Result = {
        **{name: getattr(args, name) for name in ("samples", "passes", "threads")},
        "observed": lq_plugin.StaticQuantization().samples,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "models": {},
    }
    for model in args.models:
        report["models"][model] = run_model(model, args)
    command_line.write(report, markdown(report), args.out)
    command_line.show(markdown(report))


if __name__ == "__main__":
    main()
