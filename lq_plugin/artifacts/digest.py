"""What determines the files of an artifact, by which an interrupted run knows what it need not make again."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
from pathlib import Path

import lq_plugin
from lq_plugin import checksums, cpu
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.candidate import Candidate, DynamicCandidate, StaticCandidate
from lq_plugin.identity import tensors_digest
from lq_plugin.scheme import as_dict


def artifact_digest(candidate: Candidate, format_name: str, threads: int | None = None) -> str:
    """Return a sha256 of everything that decides how a graph is written in a format.

    Args:
        candidate: what is exported.
        format_name: the format, which holds a graph.
        threads: number of threads with which forms of operators are compared; ``None`` for the runtime's choice.
    """
    candidate, packages = candidate.on(FORMATS[format_name].runtime), FORMATS[format_name].packages
    graph = candidate.graph
    content = {
        "candidate": [candidate.name, as_dict(candidate.scheme)],
        "graph": [graph.digest, graph.signature.to_json(), [list(tensor.shape) for tensor in graph.example]],
        "format": format_name,
        "code": [_own_code(), *(_version(name) for name in ("torch", "torchao", *packages))],
        "machine": [cpu.fingerprint(), threads],  # where something is measured, such as the form of a GRU
    }
    if isinstance(candidate, DynamicCandidate):
        content["trained"] = candidate.reference.digest  # what stays float is not learnt
    if isinstance(candidate, StaticCandidate):
        statistics = candidate.statistics
        content["statistics"] = tensors_digest(
            {f"{value}.{part}": tensor for value, parts in statistics.items() for part, tensor in parts.items()}
        )
        content["weight_scales"] = tensors_digest(candidate.weight_scales)
        content["keep_float"] = sorted(candidate.keep_float)
        content["faster_in_float"] = sorted(candidate.faster_in_float.get(FORMATS[format_name].runtime, ()))
        content["learnt_ranges"] = {name: list(bounds) for name, bounds in candidate.learnt_ranges.items()}
    return checksums.of_json(content)


def _version(package: str) -> str:
    """The version of a package; one module may come from several distributions, such as onnxruntime-gpu."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(package), "__version__", ""))


@functools.cache
def _own_code() -> str:
    """Digest of this package's source; a version says nothing about a working copy."""
    total = hashlib.sha256()
    for file in sorted(Path(lq_plugin.__file__).parent.rglob("*.py")):
        total.update(file.read_bytes())
    return total.hexdigest()
