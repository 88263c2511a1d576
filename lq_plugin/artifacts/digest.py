"""What determines the files of an artifact, by which an interrupted run knows what it need not make again."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

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
    runtime, packages = FORMATS[format_name].runtime, FORMATS[format_name].packages
    candidate = candidate.on(runtime)
    content = {
        **_content(candidate),
        "format": format_name,
        "packages": [_version(name) for name in packages],
        "threads": threads,  # where something is measured, such as the form of a GRU
    }
    if isinstance(candidate, StaticCandidate):
        content["faster_in_float"] = sorted(candidate.faster_in_float.get(runtime, ()))
    return checksums.of_json(content)


def learning_digest(candidate: Candidate, *how: Any) -> str:
    """Return a sha256 of everything that decides what is learnt about a candidate on this machine.

    Args:
        candidate: what an algorithm changes, or whose operators are ranked.
        how: what is done with it: samples as calls of its graph, names, numbers.
    """
    return checksums.of_json([_learning(candidate), [_digest(each) for each in how]])


def _learning(candidate: Candidate) -> Any:
    if not isinstance(candidate, StaticCandidate):
        return _content(candidate)
    own = {runtime: sorted(candidate.placed(runtime).quantized) for runtime in candidate.runtimes}
    return [_content(candidate), own, {name: _learning(each) for name, each in sorted(candidate.variants.items())}]


def _digest(given: Any) -> Any:
    """Samples as their digest, everything else as it is."""
    if not isinstance(given, tuple):
        return given
    calls = enumerate(given)
    return tensors_digest({f"{place}.{number}": tensor for place, call in calls for number, tensor in enumerate(call)})


def _content(candidate: Candidate) -> dict[str, Any]:
    """What decides how a candidate computes, in every format."""
    graph = candidate.graph
    content = {
        "candidate": [candidate.name, as_dict(candidate.scheme)],
        "graph": [graph.digest, graph.signature.to_json(), [list(tensor.shape) for tensor in graph.example]],
        "names": [graph.modules, [node.name for node in graph.module.graph.nodes]],  # which patterns mean
        "code": [own_code(), *(_version(name) for name in ("torch", "torchao"))],
        "machine": cpu.fingerprint(),
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
        content["learnt_ranges"] = {name: list(bounds) for name, bounds in candidate.learnt_ranges.items()}
    return content


def _version(package: str) -> str:
    """The version of a package; one module may come from several distributions, such as onnxruntime-gpu."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(package), "__version__", ""))


@functools.cache
def own_code() -> str:
    """Return a digest of this package's source; a version says nothing about a working copy."""
    total = hashlib.sha256()
    for file in sorted(Path(lq_plugin.__file__).parent.rglob("*.py")):
        total.update(file.read_bytes())
    return total.hexdigest()
