"""What follows a fit: seconds from its end to the manifest, step by step.

Run it from the repository's root, in an environment with ``lq_plugin``::

    python -m benchmarks.fit_end
    python -m benchmarks.fit_end --samples 200 --out build/fit_end.json
    python -m benchmarks.fit_end --profile build/fit_end.prof

ResNet-18 for 3x224x224 with random weights is trained for two steps, quantized without algorithms, exported as
``onnx``, ``openvino`` and ``pt2``, and evaluated. The seconds of a step are its own, without those of steps within it;
what no step covers is "other". Writes OUT as JSON and as Markdown. ``--profile`` writes what cProfile saw, which costs
time itself.
"""

import argparse
import cProfile
import functools
import importlib
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lq_plugin
from benchmarks import command_line
from benchmarks.reference_models import SEED, images
from benchmarks.vision_models import ResNet18
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.callbacks import finishing
from lq_plugin.evaluation import latency

BATCH_SIZE = 50
BOUND = 60.0  # seconds, on 2 cores
# The functions that are steps, by module and name; those of a format are told apart by its name.
STEPS = {
    "capture": ("lq_plugin.graph.prepare", "capture"),
    "fold": ("lq_plugin.graph.prepare", "fold"),
    "candidate": ("lq_plugin.pipeline", "_candidates"),
    "convert, write, check": ("lq_plugin.exporting", "export_one"),
    "keep in the store": ("lq_plugin.store", "Store.keep_artifact"),
    "latency: waiting": ("lq_plugin.evaluation.latency_process", "Worker.wait_until_ready"),
    "latency: measuring": ("lq_plugin.evaluation.latency", "in_turns"),
    "latency: starting": ("lq_plugin.evaluation.latency", "Starting.add"),
    "latency: ending": ("lq_plugin.evaluation.latency", "Starting.__exit__"),
    "kernels": ("lq_plugin.evaluation.kernels", "counted"),
    "scoring": ("lq_plugin.evaluation.compare", "_score"),
    "manifest": ("lq_plugin.pipeline", "_with_manifest"),
}
Result = dict[str, Any]


class Classifier(LightningModule):
    """What is trained and validated."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ResNet18()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        scores = self(batch[0])
        self.log("val/loss", F.cross_entropy(scores, batch[1]))
        self.log("val/acc", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@dataclass
class Clock:
    """Adds up how long steps took, each without the steps within it, and how long the whole took."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # of this process
    workers: dict[str, float] = field(default_factory=dict)  # CPU seconds of the workers of latency, by lane
    total: float = 0.0
    cpu: float = 0.0  # of this process and of those that it has ended: what a busy machine changes least
    _running: list[str] = field(default_factory=list)
    _since: tuple[float, float] = (0.0, 0.0)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def _switch(self) -> None:
        now = time.perf_counter(), time.process_time()
        if self._running:
            name = self._running[-1]
            for spent, until, since in zip((self.seconds, self.cpu_seconds), now, self._since, strict=True):
                spent[name] = spent.get(name, 0.0) + until - since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function as a step."""

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self.step(name):
                return function(*args, **kwargs)

        return called

    def watch(self) -> None:
        """Time every step from now on."""
        self._watch_workers()
        for name, (module, path) in STEPS.items():
            *owners, attribute = path.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))
        for name, found in list(FORMATS.items()):
            if found.export is not None and isinstance(FORMATS, dict):
                FORMATS[name] = replace(found, export=self.timed(f"write {name}", found.export))

    def _watch_workers(self) -> None:
        """Note what the workers of latency have used, before they are ended."""
        end = latency.Starting.__exit__

        def ended(starting: latency.Starting, *given: object) -> None:
            for lane, worker in starting._workers.items():
                self.workers[lane] = self.workers.get(lane, 0.0) + cpu_seconds(worker._process.pid)
            end(starting, *given)

        latency.Starting.__exit__ = ended  # type: ignore[method-assign]


def cpu_seconds(process: int) -> float:
    """CPU seconds of a process and of all that it has started, from Linux's /proc."""
    times, parents = dict[int, int](), dict[int, int]()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            _, parent, *fields = file.read_text().rpartition(")")[2].split()
            times[int(file.parent.name)], parents[int(file.parent.name)] = sum(map(int, fields[9:13])), int(parent)
    family = [process]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return sum(times.get(member, 0) for member in family) / os.sysconf("SC_CLK_TCK")


def measure(args: argparse.Namespace, folder: Path) -> Clock:
    """Train for two steps, and time what follows."""
    clock = Clock()
    clock.watch()
    finish, profile = finishing.finish, cProfile.Profile()

    @functools.wraps(finish)
    def finished(*given: Any, **options: Any) -> None:
        start, before = time.perf_counter(), os.times()
        if args.profile is not None:
            profile.enable()
        with clock.step("other"):
            finish(*given, **options)
        profile.disable()
        clock.total = time.perf_counter() - start
        clock.cpu = sum(os.times()[:4]) - sum(before[:4])

    finishing.finish = finished
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=1,
        limit_train_batches=2,
        num_sanity_val_steps=0,
        callbacks=[
            lq_plugin.StaticQuantization(algorithms=[]),
            lq_plugin.ArtifactExport(formats=["onnx", "openvino", "pt2"]),
            lq_plugin.Int8Evaluation(),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    x = images(args.samples, torch.Generator().manual_seed(SEED))
    data = TensorDataset(x, torch.randint(1000, (args.samples,)))
    trainer.fit(Classifier(), DataLoader(data, 8), DataLoader(data, BATCH_SIZE))
    if args.profile is not None:
        profile.dump_stats(args.profile)
    return clock


def markdown(report: Result) -> str:
    """The report as a Markdown table."""
    total = report["total_s"]
    lines = [
        "# From fit's end to the manifest",
        "",
        f"ResNet-18, 3x224x224, formats onnx, openvino and pt2, {report['samples']} samples in evaluation, default "
        f"latency; {report['threads']} threads on {report['cores']} cores, {report['machine']}; torch "
        f"{torch.__version__}.",
        "",
        f"{total:.1f} s in all (bound: {BOUND:.0f} s), {report['cpu_s']:.1f} s of CPU time.",
        "",
        "| step of this process | s | CPU s |",
        "| --- | ---: | ---: |",
    ]
    steps, cpu = report["steps_s"], report["steps_cpu_s"]
    lines += [f"| {name} | {steps[name]:.2f} | {cpu[name]:.2f} |" for name in sorted(steps, key=cpu.get, reverse=True)]
    lines += ["", "| worker of latency | CPU s |", "| --- | ---: |"]
    lines += [f"| {lane} | {seconds:.2f} |" for lane, seconds in report["workers_cpu_s"].items()]
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000, help="in evaluation (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch (default: all cores)")
    parser.add_argument("--profile", type=Path, help="where cProfile's statistics are written")
    parser.add_argument("--out", type=Path, default=command_line.RESULTS / "fit_end.json")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    warnings.filterwarnings("ignore", ".*num_workers|.*The number of training batches")
    with tempfile.TemporaryDirectory() as folder:
        clock = measure(args, Path(folder))
    report: Result = {
        "samples": args.samples,
        "threads": args.threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "total_s": clock.total,
        "cpu_s": clock.cpu,
        "steps_s": clock.seconds,
        "steps_cpu_s": clock.cpu_seconds,
        "workers_cpu_s": clock.workers,
    }
    command_line.write(report, markdown(report), args.out)
    command_line.show(markdown(report))


if __name__ == "__main__":
    main()
