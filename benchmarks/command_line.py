"""What the benchmarks' command lines share: the options that each has, and its report on disk and on the screen."""

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

RESULTS = Path(__file__).resolve().parent / "results"


def parser(description: str | None, models: Iterable[str], out: str) -> argparse.ArgumentParser:
    """Return a parser with the options ``--models``, ``--threads`` and ``--out``.

    Args:
        description: the benchmark's docstring.
        models: names of the models that it can measure, in the order in which it does.
        out: name of the report in ``results``, without a suffix.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", nargs="+", choices=list(models), default=list(models))
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each runtime (default: all cores)")
    made.add_argument("--out", type=Path, default=RESULTS / f"{out}.json", help="the report; its table ends in .md")
    return made


def write(report: dict[str, Any], table: str, out: Path) -> None:
    """Write a report as JSON, and its table as Markdown beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    out.with_suffix(".md").write_text(table)


def show(table: str) -> None:
    """Print a table in Markdown."""
    Console().print(table, markup=False, highlight=False)


def markdown_table(headers: Sequence[str], body: Iterable[Sequence[str]], texts: int = 1) -> list[str]:
    """The lines of a table: the first columns hold texts, which are left-aligned, the others numbers."""
    ruler = (*["---"] * texts, *["---:"] * (len(headers) - texts))
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (headers, ruler, *body)]
