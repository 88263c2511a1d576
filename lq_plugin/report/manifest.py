"""``manifest.json``: everything that was made, measured and decided, with checksums. Schema version 1."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lq_plugin import cpu
from lq_plugin.evaluation.measurement import Measurement
from lq_plugin.report.schema import SCHEMA_VERSION, validated
from lq_plugin.untrusted import read_json

if TYPE_CHECKING:
    from lq_plugin.artifacts.base import Artifact

FILE = "manifest.json"
NO_FP32: Mapping[str, Any] = {"metrics": {}, "size_bytes": None, "latency_ms": {}, "errors": {}}
_CORE = ("lq_plugin", "torch", "torchao", "lightning", "torchmetrics")


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate in one format.

    Args:
        candidate: the candidate's name.
        method: its scheme's method.
        format: the format asked for.
        runtime: what executes it.
        artifact: what was made, unless it failed.
        status: ``ok`` or ``over_budget`` as the budget judged its validation figures, ``not_evaluated`` where nothing
            judged it, ``failed`` where it could not be made or run, or ``unsupported``.
        error: why it failed, or why nothing judged it.
    """

    candidate: str
    method: str
    format: str
    runtime: str
    artifact: Artifact | None = None
    status: str = "not_evaluated"
    error: str | None = None

    @property
    def label(self) -> str:
        """``<candidate>/<format>``."""
        return f"{self.candidate}/{self.format}"


def entry(outcome: Outcome, root: Path, measured: Measurement = Measurement()) -> dict[str, Any]:
    """Return an artifact's entry; what was not measured is ``None``."""
    artifact = outcome.artifact
    return {
        "candidate": outcome.candidate,
        "method": outcome.method,
        "runtime": outcome.runtime,
        "format": outcome.format,
        "path": artifact.path.relative_to(root).as_posix() if artifact else None,
        "sha256": dict(artifact.files) if artifact else {},
        "size_bytes": artifact.size_bytes if artifact else None,
        **{name: value for name, value in vars(measured).items() if name != "error"},
        "quantized_ops": list(artifact.quantized_ops) if artifact else [],
        "float_ops": list(artifact.float_ops) if artifact else [],
        "status": outcome.status,
        "error": outcome.error,
    }


def build(
    artifacts: Sequence[Mapping[str, Any]],
    *,
    fp32: Mapping[str, Any],
    budget: Mapping[str, Any],
    selected: str | None,
    calibration: Mapping[str, Any],
    config: Mapping[str, Any],
    seed: int | None,
) -> dict[str, Any]:
    """Return a whole manifest as builtins."""
    return {
        "schema_version": SCHEMA_VERSION,
        "fp32": fp32,
        "artifacts": list(artifacts),
        "selected": selected,
        "budget": budget,
        "calibration": calibration,
        "environment": environment(),
        "seed": seed,
        "config": config,
    }


def write(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write the manifest in one step: a reader sees the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    return replace_file(folder / FILE, json.dumps(_plain(manifest), indent=1, allow_nan=False))


def read(file: Path) -> dict[str, Any]:
    """Return the content of a manifest, which may come from anywhere, with every field as reports expect it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no manifest that this version understands; what is wrong, in one sentence.
    """
    return validated(read_json(file))


def replace_file(file: Path, text: str) -> Path:
    """Write a file in one step: a reader sees the old one or the new one."""
    for left in file.parent.glob(f".{file.name}.*"):  # by a run that was killed
        left.unlink(missing_ok=True)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with scratch.open(
            "x", encoding="utf-8", newline=""
        ) as stream:  # what may lie there as a link is not written to
            stream.write(text)
        return scratch.replace(file)
    except OSError:  # a full disk has no place for half a file either
        scratch.unlink(missing_ok=True)
        raise


def environment() -> dict[str, Any]:
    """Return versions of what was used, the CPU and its relevant instruction sets."""
    import torch  # neither is needed to read manifests

    from lq_plugin.artifacts.base import FORMATS

    versions = {"python": platform.python_version()}
    for package in dict.fromkeys((*_CORE, *(package for made in FORMATS.values() for package in made.packages))):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "cpu": cpu.name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": cpu.isa(),
        "platform": platform.platform(),
    }


def _plain(value: Any) -> Any:
    """JSON has no nan and no infinity: they become ``None`` and strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
