"""How long a run will take, by what the same steps took before."""

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TYPICAL = {"prepare": 20.0, "compile": 60.0, "cell": 90.0}  # seconds on two cores, where nothing is known
PATTERNS = {"prepare": "*/*.json", "compile": "*/compiled/*.json", "cell": "*/cells/*.json"}

Seconds = dict[str, dict[str, float]]  # by kind of step, then by its file below the folder that is kept


def known(keep: Path, reports: Iterable[Mapping[str, Any]]) -> Seconds:
    """What steps took: those kept in the folder, else those of reports."""
    found: Seconds = {kind: {} for kind in PATTERNS}
    for report in reports:
        for kind, seconds in report["seconds"].items():
            found[kind] |= seconds
    for kind, pattern in PATTERNS.items():
        for file in keep.glob(pattern):
            if (seconds := json.loads(file.read_text()).get("wall_seconds")) is not None:
                found[kind][file.relative_to(keep).as_posix()] = round(seconds, 1)
    return found


def told(wanted: Mapping[str, Iterable[str]], took: Seconds) -> str:
    """How long steps will take.

    Args:
        wanted: the files of the steps to do, by kind.
        took: see :func:`known`; the median of the kind stands for what is not known.
    """
    parts, total = [], 0.0
    for kind, files in wanted.items():
        others = took[kind].values()
        typical = statistics.median(others) if others else TYPICAL[kind]
        expected = [took[kind].get(file, typical) for file in files]
        total += sum(expected)
        parts.append(f"{kind} {len(expected)} ({sum(expected) / 60:.0f} minutes)")
    return f"To do: {', '.join(parts)}; about {total / 60:.0f} minutes in all."
