"""Runs as rows of a leaderboard: found below folders, and read whatever state they are in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lq_plugin.errors import ConfigError
from lq_plugin.printing import counted, line, plain
from lq_plugin.report import files, manifest
from lq_plugin.report.board import Failed, Row, rows_of
from lq_plugin.report.limits import ContentError
from lq_plugin.report.manifest import Config, Entry, Manifest
from lq_plugin.untrusted import read_bytes, read_json

FAILURE = "failure.json"
JOB = "job.json"
QUANTIZED = "quantized"
OVERRIDES = Path(".hydra", "overrides.yaml")
PLACES = ("default_root_dir", "dirpath", "output_dir", "save_dir")  # differ between jobs and decide nothing
_OVERRIDES_LIMIT = 1 << 16  # bytes; a job has a few dozen, of one line each


@dataclass(frozen=True)
class Run:
    """What was found in the folder of one run.

    Args:
        rows: of its manifest.
        failed: why it stopped, or why its manifest cannot be read.
        options: its configuration by dotted key.
        job: digest of what determines its results, which a job of a sweep leaves; ``None`` where it is not known.
    """

    rows: tuple[Row, ...]
    failed: tuple[Failed, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    job: str | None = None


@dataclass(frozen=True)
class Found:
    """The runs below some folders.

    Args:
        runs: their folders by name, ``2`` before ``10``. A name is printable text, whatever the folder is called.
        unreadable: folders that could not be looked into.
    """

    runs: Mapping[str, Path]
    unreadable: tuple[Path, ...]


def find(folders: Sequence[Path]) -> Found:
    """Find the runs below some folders. Links are not followed: they could lead anywhere, and in circles.

    Raises:
        ConfigError: a folder does not exist, or there is no run below any.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder.")
    unreadable: list[Path] = []
    found = set(below([folder.resolve() for folder in folders], (manifest.FILE, FAILURE), unreadable))
    runs = {file.parent.parent for file in found if file.name == manifest.FILE and file.parent.name == QUANTIZED}
    runs |= {file.parent for file in found if file.name == FAILURE}
    if not runs:
        hidden = f" {counted(len(unreadable), 'folder')} cannot be read." if unreadable else ""
        raise ConfigError(
            f"{', '.join(map(str, folders))}: there is no run below. A run is a folder with "
            f"{QUANTIZED}/{manifest.FILE}, which ArtifactExport writes.{hidden}"
        )
    return Found(_named(runs), tuple(sorted(unreadable)))


def below(folders: Iterable[Path], names: Sequence[str], unreadable: list[Path] | None = None) -> Iterator[Path]:
    """Return whatever has one of some names below some folders.

    Args:
        folders: where to look, in any depth, and not through links.
        names: of files.
        unreadable: the folders that cannot be looked into are appended to it.
    """
    waiting = list(folders)
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name in names:
                        yield Path(entry)
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry))
        except OSError:
            if unreadable is not None:
                unreadable.append(folder)


def _named(runs: Iterable[Path]) -> dict[str, Path]:
    runs = sorted(runs)
    root = Path(os.path.commonpath([run.parent for run in runs]))
    named: dict[str, Path] = {}
    for run in runs:
        name = plain(run.relative_to(root).as_posix())
        while name in named:  # two folders may differ in nothing that can be printed
            name += "'"
        named[name] = run
    return {name: named[name] for name in sorted(named, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def read(name: str, folder: Path) -> Run:
    """Read a run; what cannot be read is a failure with its reason, and does not affect other runs."""
    overrides = _overrides(folder / OVERRIDES)
    stopped = reason(folder / FAILURE)
    failed, job = () if stopped is None else (Failed(name, overrides, stopped),), _job(folder / JOB)
    file = folder / QUANTIZED / manifest.FILE
    try:
        if file.parent.is_symlink():
            raise ValueError(f"is below a link; put the folder {QUANTIZED} itself in its place")
        content = manifest.read(file)
        rows = tuple(rows_of(name, overrides, content, _entries(content, file.parent)))
        return Run(rows, failed, _options(content.config), job)
    except FileNotFoundError:
        return Run((), failed, job=job)
    except Exception as error:
        return Run((), (*failed, Failed(name, overrides, _unreadable(file, error))), job=job)


def superseded(runs: Mapping[str, Run]) -> dict[str, str]:
    """Return the runs of jobs that a later sweep ran again or took over, each with the last run of the job.

    A run that failed gives way to any later one; one that finished only to one with the same manifest, because other
    figures were measured anew.

    Args:
        runs: by name, in the order of their folders.
    """
    later: dict[str, list[str]] = {}
    earlier: dict[str, str] = {}
    for name, run in reversed(list(runs.items())):
        if run.job is None:
            continue
        others = later.setdefault(run.job, [])
        last = next((each for each in others if run.failed or _manifest(runs[each]) == _manifest(run)), None)
        others.append(name)
        if last is not None:
            earlier[name] = last
    return dict(reversed(earlier.items()))


def _manifest(run: Run) -> Manifest | None:
    return run.rows[0].manifest if run.rows else None


def _job(file: Path) -> str | None:
    """Return which job a run is; a run that does not say it is listed in any case."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return None
    job = content.get("job") if isinstance(content, dict) else None
    return job if isinstance(job, str) else None


def reason(file: Path) -> str | None:
    """Return in one line why a job stopped, as its ``failure.json`` says; ``None`` where there is none."""
    try:
        content = read_json(file)
        if not isinstance(content, dict) or not isinstance(content.get("error"), str):
            raise ValueError("holds no text under 'error'")
        return line(content["error"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return _unreadable(file, error)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def _overrides(file: Path) -> tuple[str, ...]:
    try:
        return tuple(map(plain, _listed(read_bytes(file, _OVERRIDES_LIMIT).decode("utf-8"))))
    except FileNotFoundError:
        return ()
    except Exception as error:  # whatever is wrong with it, the figures of the run count
        return (_unreadable(file, error),)


def _listed(text: str) -> Iterator[str]:
    """Return the texts of a YAML list.

    It is read event by event and never composed: no alias is followed, and nothing is nested.
    """
    allowed = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)
    lists = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        lists += isinstance(event, yaml.SequenceStartEvent)
        if isinstance(event, yaml.ScalarEvent) and lists == 1:
            yield event.value
        elif lists > 1 or not isinstance(event, (*allowed, yaml.SequenceStartEvent, yaml.SequenceEndEvent)):
            raise ValueError("is not a list of overrides")


def _unreadable(file: Path, error: Exception) -> str:
    """Say in one line what is wrong with a file."""
    if isinstance(error, UnicodeDecodeError | yaml.YAMLError):
        return line(f"{file.name} is not valid: {error}")
    if isinstance(error, ContentError):
        return line(f"{file.name}: {error}")
    if isinstance(error, ValueError):  # whose message continues the file's name
        return line(f"{file.name} {error}")
    if isinstance(error, OSError):
        return line(f"{file.name} cannot be read ({error.strerror or error})")
    return line(f"{file.name} cannot be read ({type(error).__name__}: {error})")


def _entries(content: Manifest, folder: Path) -> Iterator[tuple[Entry, str | None]]:
    """Every artifact of a manifest with what its files are; one whose files were changed has failed."""
    for entry, (state, wrong) in zip(content.artifacts, files.compared(folder, content.artifacts), strict=True):
        status = "failed" if state == files.CHANGED else entry.status
        error = " ".join(filter(None, (entry.error, wrong))) or None
        yield replace(entry, status=status, error=error), state


def _options(config: Config) -> dict[str, Any]:
    options = flat(config.options)
    return {key: value for key, value in options.items() if not key.endswith(PLACES)}
