"""From a candidate to files: written to a temporary folder, described, and renamed when they are complete."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lq_plugin.artifacts import description
from lq_plugin.artifacts.base import FORMATS, Format
from lq_plugin.artifacts.description import Artifact, read
from lq_plugin.coverage import Coverage
from lq_plugin.durable import put_in_place
from lq_plugin.errors import ArtifactError, ExportError, LqError, UnsupportedError
from lq_plugin.options import check_threads
from lq_plugin.scheme import as_dict

if TYPE_CHECKING:
    from lq_plugin.candidate import Candidate


def export_one(candidate: Candidate, path: Path, format_name: str, threads: int | None = None) -> Artifact:
    """Export a candidate in one format to ``path``.

    Args:
        candidate: what to export.
        path: the artifact's folder; an existing one is replaced when the new one is complete.
        format_name: the format.
        threads: how many threads will run the artifact; ``None`` for the runtime's choice.

    Raises:
        ConfigError: too few threads.
        UnsupportedError: the format does not exist for candidates of this method, or for this one.
    """
    check_threads(threads)
    if candidate.scheme.method in FORMATS[format_name].refuses:
        raise UnsupportedError(FORMATS[format_name].refuses[candidate.scheme.method])
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{format_name}-*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{format_name}-", dir=path.parent))
    try:
        _recall(candidate, path)
        coverage = _written(candidate, scratch, format_name, threads)
        _describe(candidate, coverage, scratch, format_name)
        shutil.rmtree(path, ignore_errors=True)
        scratch.chmod(0o755)
        put_in_place(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return read(path)


def _recall(candidate: Any, path: Path) -> None:
    """Reuse what was measured for the artifact that is replaced, so that the same candidate gives the same bytes."""
    if candidate.scheme.method == "dynamic":
        with suppress(ArtifactError):  # there is none, or none that can be read
            for digest, decision in read(path).measured.items():
                candidate.measured.setdefault(digest, decision)


def _written(candidate: Candidate, folder: Path, format_name: str, threads: int | None) -> Coverage:
    """Write the runtime's own files."""
    try:
        coverage = _write(candidate, folder, FORMATS[format_name], threads)
        if (annotate := FORMATS[format_name].annotate) is not None:
            annotate(folder, _properties(candidate))
    except (LqError, OSError):
        raise
    except Exception as error:
        raise ExportError(
            f"formats: {format_name!r} cannot be made from candidate {candidate.name!r} ({_reason(error)}). The other "
            "formats are not affected."
        ) from error
    return coverage


def _properties(candidate: Candidate) -> dict[str, str]:
    """What a file says of its origin: what decides its bytes, so nothing that is measured, and no time or place."""
    return {
        "lq_plugin.candidate": candidate.name,
        "lq_plugin.scheme": json.dumps(as_dict(candidate.scheme), sort_keys=True),
        "lq_plugin.weights": candidate.provenance.digest,
    }


def _reason(error: Exception) -> str:
    """Why an exporter refused a graph: what it began with says more than its own summary of a page."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if missing := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(cause)):
        return f"ONNX has no form of the operator {missing[1]}; the format 'pt2' has"
    lines = _lines(error)
    unsupported = next((line for line in lines if "Unsupported" in line), None)
    return f"{type(error).__name__}: {unsupported}" if unsupported else f"{type(cause).__name__}: {_lines(cause)[0]}"


def _lines(error: BaseException) -> list[str]:
    """What an error says, without empty lines; at least one."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]


def _write(candidate: Any, folder: Path, chosen: Format, threads: int | None) -> Coverage:
    write = chosen.writers.get(candidate.scheme.method)
    if write is not None:
        return write(candidate, folder, threads)
    assert chosen.export is not None
    if refused := candidate.graph.operators & chosen.refuses_operators.keys():
        raise UnsupportedError(chosen.refuses_operators[min(refused)])
    placement = candidate.placed(chosen.runtime)
    chosen.export(candidate.converted(chosen.runtime), folder)
    return Coverage(tuple(placement.quantized.values()), placement.float_ops)


def _describe(candidate: Candidate, coverage: Coverage, folder: Path, format_name: str) -> None:
    """Write ``artifact.json`` beside the runtime's files."""
    chosen = FORMATS[format_name]
    names = {"candidate": candidate.name, "method": candidate.scheme.method}
    signature = candidate.graph.signature if chosen.load is not None else None
    multiplied = any(not op.op.startswith("embedding") for op in coverage.quantized)  # table rows are only looked up
    saturates = multiplied and not candidate.scheme.reduce_range and not chosen.never_saturates
    description.write(
        folder, names | {"format": format_name, "runtime": chosen.runtime}, signature, coverage, saturates
    )
