"""Runs cases of damage in a child process of bounded memory that is watched, and is started again where it dies.

A case copies a good specimen, damages the copy and reads it. What comes of it is one of
``read`` (the damage did no harm), ``refused`` (by an error of ours), ``unnamed`` (by any other error), ``crashed``
(the process died) or ``hung``.
"""

from __future__ import annotations

import importlib
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

TESTS = Path(__file__).parents[1]
SEED = 9
STARTING = 120.0  # seconds that may pass before the process is taken to hang


@dataclass(frozen=True)
class Case:
    """One damaged copy of a specimen.

    Args:
        name: what is done, with a number; its random numbers follow from it, so they never change.
        specimen: name of the folder that is copied; ``None`` for an empty one, which the damage fills.
        damage: changes the copy.
        read: reads the copy; whatever it raises must be an ``LqError``.
    """

    name: str
    specimen: str | None
    damage: Callable[[Path, Random], object]
    read: Callable[[Path], object]


@dataclass
class Report:
    """What became of each case.

    Args:
        outcomes: outcome by case.
        messages: what was said, by case.
        growth: MiB of memory that the largest child took beyond what it takes to read each specimen.
        printed: what the children printed.
    """

    outcomes: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    growth: float = 0.0
    printed: str = ""

    def those(self, outcome: str) -> list[str]:
        """Cases of an outcome, with what was said."""
        return [f"{name}: {self.messages.get(name, '')}" for name, came in self.outcomes.items() if came == outcome]

    def __str__(self) -> str:
        groups: dict[str, Counter[str]] = {}
        for name, outcome in self.outcomes.items():
            groups.setdefault(name.rpartition(" ")[0], Counter())[outcome] += 1
        rows = [f"  {group}: {dict(sorted(counts.items()))}" for group, counts in sorted(groups.items())]
        total = dict(sorted(Counter(self.outcomes.values()).items()))
        return "\n".join([f"{len(self.outcomes)} cases: {total}, memory +{self.growth:.0f} MiB", *rows])


def run(module: str, specimens: Path, scratch: Path, patience: float = 15.0) -> Report:
    """Run all cases of a module, in as many children as it takes.

    Args:
        module: name of the module with the list ``CASES``, which the children import too.
        specimens: a folder with the good specimens.
        scratch: where copies are damaged, and the children's output is kept.
        patience: seconds that a case may take.
    """
    report, names = Report(), [case.name for case in importlib.import_module(module).CASES]
    assert len(set(names)) == len(names), "two cases have one name"
    while len(report.outcomes) < len(names):
        _run_child([module, str(specimens), str(scratch)], names, patience, report)
    return report


def _run_child(arguments: list[str], names: list[str], patience: float, report: Report) -> None:
    """Run cases in one child until all are done or it dies; the case at which it dies counts as done."""
    first = len(report.outcomes)
    command = [sys.executable, "-m", "damage.child", *arguments, str(first)]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    output = Path(arguments[-1]) / f"printed-{first}"
    with (
        output.open("wb") as printed,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=printed
        ) as child,
    ):
        ended = _follow(child, report, names, patience)
        if ended in ("hung", "did not start"):
            child.kill()
    report.printed += output.read_text(errors="replace")
    if ended == "did not start" or child.returncode == 1:  # an error of Python's: a case is wrong, or the child itself
        raise RuntimeError(f"the child that runs the cases failed: {report.printed[-2000:]}")
    if ended:
        name = names[len(report.outcomes)]
        report.outcomes[name], report.messages[name] = ended, f"exit code {child.returncode}"


def _follow(child: subprocess.Popen[bytes], report: Report, names: list[str], patience: float) -> str:
    """Read a child's lines; return how it ended before its time, or nothing."""
    assert child.stdout is not None
    pending, started = b"", False
    while True:
        ready, _, _ = select.select([child.stdout], [], [], patience if started else STARTING)
        read = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
        if not read and len(report.outcomes) == len(names):
            return ""
        if not read:
            return ("crashed" if ready else "hung") if started else "did not start"
        *lines, pending = (pending + read).split(b"\n")
        started = True
        for line in lines:
            outcome, growth, message = line.decode().split("\t")
            report.growth = max(report.growth, float(growth))
            if outcome != "ready":
                name = names[len(report.outcomes)]
                report.outcomes[name], report.messages[name] = outcome, message
