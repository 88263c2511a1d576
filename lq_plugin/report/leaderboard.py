"""The leaderboard: the artifacts of any set of runs side by side, as data and as files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lq_plugin.durable import replace_file
from lq_plugin.printing import counted, plain
from lq_plugin.report import board_page
from lq_plugin.report.board import Leaderboard, Row, columns, marked
from lq_plugin.report.decoder import encode
from lq_plugin.report.details import Section, sections
from lq_plugin.report.files import MISSING
from lq_plugin.report.limits import LONGEST_VALUE
from lq_plugin.report.runs import find, flat, read, superseded

FILE = "leaderboard"
SCHEMA_VERSION = 1
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # those of full width too


def leaderboard(*folders: str | os.PathLike[str]) -> Leaderboard:
    """Collect every run below some folders.

    A run is a folder with ``quantized/manifest.json``, or with the ``failure.json`` of a job that stopped. A job that
    failed and that a later sweep ran again, or whose results it took over, is listed once, in the folder of that one.

    Args:
        folders: of runs, of multiruns, or anything above them.

    Raises:
        ConfigError: a folder does not exist, or there is no run below any.
    """
    found = find([Path(folder) for folder in folders])
    every = {name: read(name, folder) for name, folder in found.runs.items()}
    earlier = superseded(every)
    runs = {name: run for name, run in every.items() if name not in earlier}
    differing = _differing({name: run.options for name, run in runs.items()})
    rows = [replace(row, config=differing[row.run]) for run in runs.values() for row in run.rows]
    artifacts = marked([row for row in rows if not row.is_fp32])
    return Leaderboard(
        tuple(artifacts),
        fp32=tuple(row for row in rows if row.is_fp32),
        failed=tuple(failure for run in runs.values() for failure in run.failed),
        notes=(*_notes(artifacts), *_listed_once(earlier), *_hidden(found.unreadable)),
    )


def distinctions(board: Leaderboard) -> dict[str, str]:
    """Return what sets each run apart: the overrides that not all runs share, or else the options that differ."""
    overrides = {job.run: job.overrides for job in board.jobs}
    configs = {row.run: row.config for row in (*board.artifacts, *board.fp32)}
    shared = set.intersection(*map(set, overrides.values())) if len(overrides) > 1 else set()
    return {
        run: " ".join(override for override in given if override not in shared)
        or " ".join(f"{key}={value}" for key, value in configs.get(run, {}).items())
        for run, given in overrides.items()
    }


def details(board: Leaderboard) -> dict[str, list[Section]]:
    """Return what INT8 costs and what was done about it, by run; without the runs that know nothing of it."""
    found = {run: sections(manifest) for run, manifest in board.manifests.items()}
    return {run: known for run, known in found.items() if known}


def write(folder: str | os.PathLike[str], *others: str | os.PathLike[str]) -> Path:
    """Write the leaderboard of every run below some folders into the first; see :func:`leaderboard` and :func:`save`.

    Args:
        folder: where it is written.
        others: more folders; those that are gone are left out.
    """
    found = [each for each in (folder, *others) if os.path.isdir(each)]
    return save(leaderboard(*(found or [folder])), folder)


def save(board: Leaderboard, out: str | os.PathLike[str]) -> Path:
    """Write ``leaderboard.json``, ``.csv`` and ``.html``, each in one step.

    Returns:
        The page, ``leaderboard.html``.

    Raises:
        MissingExtraError: the page needs jinja2; the other two files are written first.
    """
    base = Path(out) / FILE
    base.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "schema_version": SCHEMA_VERSION,
        "artifacts": [columns(row) for row in board.artifacts],
        "fp32": [columns(row) for row in board.fp32],
        "failed": board.failed,
        "notes": board.notes,
    }
    replace_file(base.with_suffix(".json"), json.dumps(encode(content), indent=1, allow_nan=False))
    replace_file(base.with_suffix(".csv"), _csv(board.artifacts))
    return replace_file(base.with_suffix(".html"), board_page.render(board, distinctions(board), details(board)))


def _differing(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The options whose values differ among the runs that have them."""
    values: dict[str, set[str]] = {}
    for config in configs.values():
        for key, value in config.items():
            values.setdefault(key, set()).add(repr(value))
    return {
        run: {key: _short(value) for key, value in config.items() if len(values[key]) > 1}
        for run, config in configs.items()
    }


def _short(value: Any) -> Any:
    """A list of ten thousand names would stand in every row of its run."""
    text = str(value)
    return value if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    timed = [row for row in rows if row.entry.median is not None]
    settings: dict[str, set[Any]] = {
        "CPU": {row.cpu for row in timed},
        "batch size": {row.batch_size for row in timed},
        "number of threads": {row.threads for row in timed},
        "budget's metric": {f"{row.budget.metric} ({row.budget.mode or 'direction unknown'})" for row in timed},
    }
    for what, values in settings.items():
        if len(values) > 1:
            listed = ", ".join(sorted(map(str, values)))
            yield f"The {what} differs ({listed}): only equals are compared, with their own winner and Pareto front."
    models = {row.model for row in timed}
    if len(models) > 1:
        yield f"The runs have different models: {', '.join(sorted(models))}. Each drop is from the run's own FP32."
    for metric in sorted({row.budget.metric for row in timed if row.budget.metric and row.budget.mode is None}):
        yield f"It is unknown whether more or less {metric} is better: every difference from FP32 counts as a drop."
    for row in timed:
        if row.winner and row.entry.slower_than_fp32:
            yield f"The winner {row.label} of run {row.run} is slower than the fastest FP32 runtime."
    missing = [f"{row.label} of run {row.run}" for row in rows if row.files == MISSING]
    if missing:
        named = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        yield f"The files of {counted(len(missing), 'artifact')} are gone; only their figures are left: {named}."
    if not any(row.winner for row in rows):
        yield "No artifact was both timed and within its budget, so there is no winner."


def _listed_once(earlier: Mapping[str, str]) -> Iterator[str]:
    if earlier:
        named = ", ".join(f"{run} (now {later})" for run, later in list(earlier.items())[:3])
        more = ", …" if len(earlier) > 3 else ""
        yield f"Listed once, because a later sweep ran the job again or took over its results: {named}{more}."


def _hidden(folders: Sequence[Path]) -> Iterator[str]:
    if folders:
        named = ", ".join(map(plain, folders[:3])) + (", …" if len(folders) > 3 else "")
        yield f"{counted(len(folders), 'folder')} cannot be read, and may hold more runs: {named}."


def _csv(rows: Sequence[Row]) -> str:
    lines = [flat({**encode(columns(row)), "overrides": " ".join(row.overrides)}) for row in rows]
    names = list(columns(rows[0])) if rows else []
    found = dict.fromkeys(key for line in lines for key in line)
    header = sorted(found, key=lambda column: names.index(column.partition(".")[0]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, header))
    writer.writerows([_cell(line.get(column)) for column in header] for line in lines)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A spreadsheet takes text such as ``+model.width=64`` for a formula, unless a space is before it."""
    if value is None or isinstance(value, int | float):
        return value
    text = plain(value, keep="\n")
    return f" {text}" if text.lstrip().startswith(_FORMULA) else text
