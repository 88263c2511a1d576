"""The process that damages and reads: ``python -m damage.child MODULE SPECIMENS SCRATCH FIRST``."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import sys
from pathlib import Path
from random import Random

from damage.harness import SEED, Case
from lq_plugin.errors import LqError

MEBIBYTE = 1 << 20
ROOM = 1024 * MEBIBYTE  # address space that a case may take beyond what is taken after each specimen was read


def main(module: str, specimens: Path, scratch: Path, first: int) -> None:
    cases: list[Case] = importlib.import_module(module).CASES
    answers = os.fdopen(os.dup(1), "w", errors="backslashreplace")
    os.dup2(2, 1)  # whatever is printed must not mix with the answers
    for read, name in {(case.read, case.specimen) for case in cases}:
        if name is not None:
            read(specimens / name)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = _peak()
    print("ready\t0\t", file=answers, flush=True)
    for case in cases[first:]:
        shutil.rmtree(scratch / "case", ignore_errors=True)  # left there by a child that died
        copy = scratch / "case"
        if case.specimen is None:
            copy.mkdir()
        else:
            shutil.copytree(specimens / case.specimen, copy)
        outcome, message = _outcome(case, copy)
        print(outcome, _peak() - before, message, sep="\t", file=answers, flush=True)


def _outcome(case: Case, copy: Path) -> tuple[str, str]:
    case.damage(copy, Random(f"{SEED} {case.name}"))
    try:
        case.read(copy)
    except BaseException as error:
        named = isinstance(error, LqError) and "\n" not in str(error)
        return "refused" if named else "unnamed", " ".join(f"{type(error).__name__}: {error}".split())[:400]
    return "read", ""


def _peak() -> float:
    """Largest resident size so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
