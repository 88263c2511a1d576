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
from lq_plugin.printing import line, plain
from lq_plugin.report import files, manifest
from lq_plugin.selection import Budget
from lq_plugin.untrusted import read_bytes, read_json

FAILURE = "failure.json"
QUANTIZED = "quantized"
OVERRIDES = Path(".hydra", "overrides.yaml")
FP32 = "fp32"
PLACES = ("default_root_dir", "dirpath", "output_dir", "save_dir")  # differ between jobs and decide nothing
_NO_BUDGET = {"metric": None, "max_drop": 0.0, "relative": True, "mode": None}
_OVERRIDES_LIMIT = 1 << 16  # bytes; a job has a few dozen, of one line each
_PREDICATES = ("is ", "holds ")
_RECKONED = (1e-100, 1e100)  # sizes of numbers whose differences and quotients fit a float


@dataclass(frozen=True)
class Row:
    """One artifact of one run, or its FP32 model on one runtime.

    Args:
        run: folder of the run, below the one that all runs have in common.
        overrides: what Hydra was given for this job.
        config: the options that differ among the runs.
        model: what was quantized, as far as the manifest tells.
        cpu: what its latency was measured on.
        candidate: its name; ``"fp32"`` for FP32.
        method: the scheme's method; ``"fp32"`` for FP32.
        format: of the artifact; ``None`` for FP32.
        runtime: what executes it.
        status: ``ok``, ``over_budget``, ``not_evaluated``, ``failed`` or ``unsupported``; ``failed`` too where its
            files are not those that were measured; ``reference`` for FP32.
        error: why it failed.
        metrics: of validation and test, by name.
        delta: the same minus FP32.
        metric: what the budget is about.
        mode: that metric's direction, ``"max"``, ``"min"`` or unknown.
        loss: what was lost of the metric, in the budget's own terms.
        max_drop: what may be lost.
        relative: whether both are a share of the FP32 value.
        latency_ms: median.
        batch_size: of the call that was timed.
        threads: that it was timed with.
        speedup_vs_torch_fp32: over FP32 in eager torch.
        speedup_vs_best_fp32: over FP32 on the runtime that is fastest with it.
        size_bytes: on disk.
        size_share: of the bytes of the FP32 weights.
        sqnr_db: fidelity of the outputs to FP32.
        files: ``as measured``, ``changed`` or ``missing``, compared with the manifest.
        pareto: whether no comparable artifact is better in one of accuracy, latency and size, and in none worse.
        winner: whether it is the fastest one within its budget among those that are comparable.
    """

    run: str
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    model: str
    cpu: str
    candidate: str
    method: str
    format: str | None
    runtime: str
    status: str
    error: str | None
    metrics: Mapping[str, Any]
    delta: Mapping[str, Any]
    metric: str | None
    mode: str | None
    loss: float | None
    max_drop: float
    relative: bool
    latency_ms: float | None
    batch_size: int | None
    threads: int | None
    speedup_vs_torch_fp32: float | None
    speedup_vs_best_fp32: float | None
    size_bytes: int | None
    size_share: float | None
    sqnr_db: float | None
    files: str | None = None
    pareto: bool = False
    winner: bool = False

    @property
    def label(self) -> str:
        """``<candidate>/<format>``, and for FP32 the runtime."""
        return f"{self.candidate}/{self.format}" if self.format else f"FP32 {self.runtime}"

    @property
    def setting(self) -> tuple[Any, ...]:
        """What has to be equal for figures to be comparable: metric and direction, and how latency was measured."""
        return (self.metric, self.mode, self.cpu, self.batch_size, self.threads)

    @property
    def accuracy(self) -> float | None:
        """What to minimize: the budget's metric in its direction; where that is unknown, how far it is from FP32."""
        value = _finite(self.metrics.get(self.metric or ""))
        if value is None or self.mode is None:
            return _loss(Budget(self.metric), self.metrics, self.delta)
        return -value if self.mode == "max" else value

    @property
    def objectives(self) -> tuple[float, float, float] | None:
        """Accuracy, latency and size, all to be minimized; ``None`` unless all three were measured."""
        if self.accuracy is None or not self.latency_ms or self.size_bytes is None:
            return None
        return self.accuracy, self.latency_ms, self.size_bytes


@dataclass(frozen=True)
class Failed:
    """A job without figures: it stopped, or its manifest cannot be read.

    Args:
        run: folder of the run.
        overrides: what Hydra was given for this job.
        error: the reason, in one line.
    """

    run: str
    overrides: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class Run:
    """What was found in the folder of one run.

    Args:
        rows: of its manifest.
        failed: why it stopped, or why its manifest cannot be read.
        options: its configuration by dotted key.
    """

    rows: tuple[Row, ...]
    failed: tuple[Failed, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


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
        hidden = f" {len(unreadable)} folders cannot be read." if unreadable else ""
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
    """Read a run; what cannot be read is a failure with its reason, and costs no other run anything."""
    overrides = _overrides(folder / OVERRIDES)
    stopped = reason(folder / FAILURE)
    failed = () if stopped is None else (Failed(name, overrides, stopped),)
    file = folder / QUANTIZED / manifest.FILE
    try:
        if file.parent.is_symlink():
            raise ValueError(f"is below a link; put the folder {QUANTIZED} itself in its place")
        content = manifest.read(file)
        return Run(tuple(_rows(name, overrides, content, file.parent)), failed, _options(content["config"]))
    except FileNotFoundError:
        return Run((), failed)
    except Exception as error:
        return Run((), (*failed, Failed(name, overrides, _unreadable(file, error))))


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
            raise ValueError("is no list of overrides")


def _unreadable(file: Path, error: Exception) -> str:
    """Say in one line what is wrong with a file."""
    if isinstance(error, UnicodeDecodeError | yaml.YAMLError):
        return line(f"{file.name} is not valid: {error}")
    if isinstance(error, ValueError):  # whose message continues the file's name
        return line(f"{file.name} {error}" if str(error).startswith(_PREDICATES) else f"{file.name}: {error}")
    if isinstance(error, OSError):
        return line(f"{file.name} cannot be read ({error.strerror or error})")
    return line(f"{file.name} cannot be read ({type(error).__name__}: {error})")


def _rows(run: str, overrides: tuple[str, ...], content: Mapping[str, Any], folder: Path) -> Iterator[Row]:
    """The rows of one manifest: FP32 on every runtime, and every artifact."""
    fp32 = content["fp32"]
    timed: Mapping[str, Any] = next((entry["latency_ms"] for entry in content["artifacts"] if entry["latency_ms"]), {})
    budget = content["budget"] or _NO_BUDGET
    shared = {
        "run": run,
        "overrides": overrides,
        "config": {},
        "model": _model(content),
        "cpu": content["environment"]["cpu"],
        **{key: budget[key] for key in _NO_BUDGET},
        "batch_size": timed.get("batch_size"),
        "threads": timed.get("threads"),
    }
    for runtime in fp32["latency_ms"]:
        yield _fp32_row(shared, fp32, runtime)
    for entry, (state, wrong) in zip(content["artifacts"], files.compared(folder, content["artifacts"]), strict=True):
        row = replace(_artifact_row(shared, entry.get("fp32") or fp32, entry), files=state)
        if wrong is not None:
            status = "failed" if state == files.CHANGED else row.status
            row = replace(row, status=status, error=" ".join(filter(None, (row.error, wrong))))
        yield row


def _fp32_row(shared: Mapping[str, Any], fp32: Mapping[str, Any], runtime: str) -> Row:
    latency = fp32["latency_ms"]
    eager = runtime == "torch"  # whose size is known: that of the weights
    return Row(
        **shared,
        candidate=FP32,
        method=FP32,
        format=None,
        runtime=runtime,
        status="reference",
        error=None,
        metrics=fp32["metrics"],
        delta=dict.fromkeys(fp32["metrics"], 0.0),
        loss=None,
        latency_ms=latency[runtime],
        speedup_vs_torch_fp32=latency["torch"] / latency[runtime] if "torch" in latency else None,
        speedup_vs_best_fp32=min(latency.values()) / latency[runtime],
        size_bytes=fp32["size_bytes"] if eager else None,
        size_share=1.0 if eager else None,
        sqnr_db=None,
    )


def _artifact_row(shared: Mapping[str, Any], fp32: Mapping[str, Any], entry: Mapping[str, Any]) -> Row:
    copied = ("candidate", "method", "format", "runtime", "status", "error", "metrics", "delta", "size_bytes")
    size, speedup = entry["size_bytes"], entry["speedup"] or {}
    budget = Budget(**{key: shared[key] for key in _NO_BUDGET})
    return Row(
        **shared,
        **{key: entry[key] for key in copied},
        loss=_loss(budget, entry["metrics"], entry["delta"]),
        latency_ms=(entry["latency_ms"] or {}).get("median"),
        speedup_vs_torch_fp32=speedup.get("vs_torch_fp32"),
        speedup_vs_best_fp32=speedup.get("vs_best_fp32"),
        size_share=size / fp32["size_bytes"] if size is not None and fp32["size_bytes"] else None,
        sqnr_db=_finite(entry["sqnr_db"]),
    )


def _loss(budget: Budget, metrics: Mapping[str, Any], delta: Mapping[str, Any]) -> float | None:
    value, change = _finite(metrics.get(budget.metric or "")), _finite(delta.get(budget.metric or ""))
    return _finite(budget.loss(value - change, value)) if value is not None and change is not None else None


def _finite(value: Any) -> float | None:
    """A figure to reckon with: a manifest holds nan as ``None`` and infinity as a string."""
    smallest, largest = _RECKONED
    if not isinstance(value, int | float) or not (value == 0 or smallest <= abs(value) <= largest):
        return None
    return float(value)


def _model(content: Mapping[str, Any]) -> str:
    """Name the model by its class, which only a configured run knows, and its size."""
    model = (content["config"].get("run") or {}).get("model")
    configured = model.get("_target_", "model") if isinstance(model, Mapping) else "model"
    size = content["fp32"]["size_bytes"]
    return str(configured) if size is None else f"{configured} of {size} bytes"


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run; the configuration of the whole run, where there is one, includes all the others."""
    options = flat(config.get("run") or config)
    return {key: value for key, value in options.items() if not key.endswith(PLACES)}
