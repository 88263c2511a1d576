"""``lq-report``: one leaderboard over any set of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lq_plugin.errors import LqError
from lq_plugin.printing import add_row, line, plain, show_lines, terminal
from lq_plugin.report import formats
from lq_plugin.report.board import Leaderboard
from lq_plugin.report.details import Section
from lq_plugin.report.leaderboard import details, distinctions, leaderboard, save

SHOWN = 20
SHORT = 14  # characters of a cell that a narrow terminal does not break
EXAMPLE = """\
examples:
  lq-report multirun/2026-03-01/12-00-00
  lq-report outputs multirun --out report

The results go to leaderboard.json, .csv (one line per artifact) and .html (one page that needs no
network). Marks: ★ the fastest artifact within its budget, ● on the Pareto front of accuracy, latency and size.
"vs FP32": against the fastest FP32 runtime.

The page also shows, for each run, what INT8 costs in which operator (a bar plot), what each algorithm gave, and the
trials of a search for mixed precision (a curve). For a single run these tables are printed, too.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``lq-report``."""
    options = _parser().parse_args(arguments)
    try:
        board = leaderboard(*options.folders)
        show(board)
        page = save(board, options.out or options.folders[0])
    except (LqError, OSError) as error:
        sys.exit(line(f"lq-report: {error}"))
    show_lines(terminal(), f"Written: {page.with_suffix('.json')}, .csv and .html")
    if not board.artifacts:
        sys.exit("lq-report: no run has an artifact; the reasons are listed above.")


def show(board: Leaderboard, console: Console | None = None) -> None:
    """Print the first artifacts of a leaderboard, every failed job, the notes, and the details of a single run.

    Args:
        board: what to print.
        console: where to print; the terminal by default.
    """
    console = console or terminal()
    if board.artifacts:
        console.print(_table(board))
    left_out = len(board.artifacts) - SHOWN
    lines = [f"… and {left_out} more in the files."] if left_out > 0 else []
    lines += [f"Run {run}: {what}" for run, what in distinctions(board).items() if what]
    lines += [
        f"Run {row.run}, {row.label}: {row.entry.status}. {row.entry.error}"
        for row in board.artifacts
        if row.entry.error
    ]
    lines += [f"Run {job.run}: failed. {job.error}" for job in board.failed]
    show_lines(console, *lines, *board.notes)
    known = details(board)
    if len({job.run for job in board.jobs}) == 1:
        for section in next(iter(known.values()), []):
            show_section(section, console)
    elif known:
        show_lines(console, "What INT8 costs in each run, its algorithms and its searches: in the page.")


def show_section(section: Section, console: Console) -> None:
    """Print a table about one run, and what it leaves out."""
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.title = Text(plain(section.title))
    for number, (column, side) in enumerate(section.columns.items()):
        short = all(len(row[number]) <= SHORT for row in section.rows)
        table.add_column(Text(plain(column)), justify=side, no_wrap=short, overflow="fold")
    for row in section.rows:
        add_row(table, *row)
    console.print(table)
    show_lines(console, *([section.more] if section.more else []))


def _table(board: Leaderboard) -> Table:
    table = Table(title="INT8 leaderboard", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=0)
    metrics = {row.budget.metric for row in board.artifacts}
    metric = next(iter(metrics)) if len(metrics) == 1 else None
    for column in ("", "artifact", "run", metric or "metric", "delta", "ms", "vs FP32", "size", "status"):
        text = column in ("", "artifact", "run", "status")
        table.add_column(
            Text(plain(column)),
            justify="left" if text else "right",
            no_wrap=column != "run",
            min_width=8 if column == "run" else None,
            overflow="fold",
        )
    for row in board.ranked[:SHOWN]:
        named = row.budget.metric or ""
        add_row(
            table,
            "★" * row.winner + "●" * row.pareto,
            row.label,
            row.run,
            ("" if metric else f"{named} ") + formats.metric(row.entry.metrics.get(named)),
            formats.change(row.entry.delta.get(named)),
            formats.milliseconds(row.entry.median),
            formats.times(row.speedup.vs_best_fp32),
            formats.size(row.entry.size_bytes),
            row.entry.status,
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lq-report",
        description="One leaderboard over all runs below some folders, in any depth: single runs, multiruns, or both.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="where to look for runs")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where the files go; the first DIR by default")
    return parser


if __name__ == "__main__":
    main()
