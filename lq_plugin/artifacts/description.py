"""``artifact.json``: what an artifact is, how it is called, and the sha256 of every file, itself included.

The checksums protect against damage. They prove nothing about who made the artifact: whoever changes a file can
write its new checksum too. So everything that is read here is checked like any file from outside.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lq_plugin import checksums
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.artifacts.layout import layouts, move
from lq_plugin.coverage import Coverage, Measured
from lq_plugin.durable import write_whole
from lq_plugin.errors import ArtifactError
from lq_plugin.graph.signature import Signature
from lq_plugin.untrusted import naming, read_json, regular_file

FILE = "artifact.json"
SCHEMA_VERSION = 1
_TEXTS = ("candidate", "method", "format", "runtime")
_DECISION = {"int8": bool, "reason": str, "float_ops": list, "saved": dict}
_OPERATORS = {"quantized_ops": {"name", "op"}, "float_ops": {"name", "op", "reason"}}


@dataclass(frozen=True)
class Artifact:
    """A candidate exported for one runtime.

    Args:
        path: its folder; ``lq_plugin.load(path)`` loads it as a module.
        candidate: name of the candidate.
        method: the scheme's method.
        format: a key of ``FORMATS``.
        runtime: what executes it.
        signature: how it is called; ``None`` where the user's own class is called.
        files: sha256 by file name, without ``artifact.json``.
        quantized_ops: ``{"name", "op"}`` of every operator that computes on integers.
        float_ops: ``{"name", "op", "reason"}`` of every operator that stays float.
        saturates_without_vnni: whether its products may not fit into the 16 bits in which x86 CPUs without VNNI add
            them up; ``None`` where it was exported before that was recorded.
        measured: decisions made by measuring, by a digest of what was measured.
    """

    path: Path
    candidate: str
    method: str
    format: str
    runtime: str
    signature: Signature | None
    files: Mapping[str, str]
    quantized_ops: Sequence[Mapping[str, str]]
    float_ops: Sequence[Mapping[str, str]]
    saturates_without_vnni: bool | None = None
    measured: Mapping[str, Measured] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """``<candidate>/<format>``."""
        return f"{self.candidate}/{self.format}"

    @property
    def size_bytes(self) -> int:
        """Bytes of the runtime's files on disk."""
        return sum((self.path / name).stat().st_size for name in self.files)


def write(
    folder: Path,
    names: Mapping[str, str],
    signature: Signature | None,
    coverage: Coverage,
    saturates_without_vnni: bool | None = None,
) -> None:
    """Write ``artifact.json`` beside the runtime's files.

    Args:
        folder: where the files are.
        names: candidate, method, format and runtime.
        signature: how the artifact is called, unless the user's own class is called.
        coverage: which operators compute on integers.
        saturates_without_vnni: see :class:`Artifact`.
    """
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        **names,
        "signature": None if signature is None else signature.to_json(),
        "quantized_ops": [vars(op) for op in coverage.quantized],
        "float_ops": [vars(op) for op in coverage.float_ops],
        "saturates_without_vnni": saturates_without_vnni,
        "measured": {digest: as_json(decision) for digest, decision in coverage.measured.items()},
        "files": {file.name: checksums.of_file(file) for file in sorted(folder.iterdir())},
    }
    content["sha256"] = checksums.of_json(content)
    (folder / FILE).write_text(json.dumps(content, indent=1))


def rearranged(artifact: Artifact) -> Artifact:
    """Return an artifact whose files have the names that Hugging Face's libraries look for; see ``layout.py``."""
    content = json.loads((artifact.path / FILE).read_text())
    moved = move(artifact.path, artifact.files)
    content["files"] = {moved[name]: digest for name, digest in content["files"].items()}
    content["sha256"] = checksums.of_json({key: value for key, value in content.items() if key != "sha256"})
    write_whole(artifact.path / FILE, json.dumps(content, indent=1).encode())
    return read(artifact.path)


def read(path: str | os.PathLike[str], signed: bool = False) -> Artifact:
    """Read an artifact's description and check every file against it.

    Args:
        path: the artifact's folder.
        signed: whether a signature was checked. It covers every byte, so that no file is read for its checksum again.

    Raises:
        ArtifactError: the folder is not an artifact, or a file in it is missing, changed, or leads out of the folder.
    """
    folder = Path(path)
    artifact = described(folder)
    for name, expected in artifact.files.items():
        _check_file(folder / name, None if signed else expected, "/" in name)
    chosen = FORMATS[artifact.format]
    for name in sorted(frozenset().union(*layouts((*chosen.files, *chosen.further_files))) - artifact.files.keys()):
        if os.path.lexists(folder / name):  # or the runtime would open it
            raise ArtifactError(
                f"path: {str(folder / name)!r} is not listed in {FILE}. It does not belong to this artifact: remove it."
            )
    return artifact


def described(folder: Path) -> Artifact:
    """Read an artifact's description alone, without the files that it describes; see :func:`read`."""
    try:
        content = read_json(folder / FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(
            f"path: {str(folder)!r} holds no artifact ({FILE} is missing). Give the folder of one format, such "
            "as '…/quantized/static/onnx'."
        ) from error
    except ValueError as error:
        raise ArtifactError(f"path: {str(folder / FILE)!r} cannot be read: it {error}. Export again.") from error
    except OSError as error:
        raise ArtifactError(f"path: {str(folder / FILE)!r} cannot be read ({error.strerror}).") from error
    try:
        artifact = _artifact(folder, content)
        _check_names(artifact)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"path: {str(folder / FILE)!r} cannot be read: {reason}. Export again.") from error
    if content.pop("sha256", None) != checksums.of_json(content):
        raise ArtifactError(f"path: {str(folder / FILE)!r} was changed after export. Export again.")
    return artifact


def _artifact(folder: Path, content: Any) -> Artifact:
    """Build an artifact from content that has the expected keys and types."""
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    version = content["schema_version"]
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {version!r} is unknown, this version of lq_plugin reads {SCHEMA_VERSION}; a newer one may "
            "have written it"
        )
    if not all(isinstance(content[key], str) for key in _TEXTS):
        raise ValueError(f"{', '.join(_TEXTS)} must be strings")
    for key, fields in _OPERATORS.items():
        if not isinstance(content[key], list) or not all(_is_record(op, fields) for op in content[key]):
            raise ValueError(f"{key} must be a list of records of {', '.join(sorted(fields))}")
    files = content["files"]
    if not isinstance(files, dict) or not all(checksums.is_sha256(value) for value in files.values()):
        raise ValueError("files must hold a sha256 for each file")
    saturates = content.get("saturates_without_vnni")  # not in what earlier versions wrote, nor is "measured"
    if saturates is not None and not isinstance(saturates, bool):
        raise ValueError("saturates_without_vnni must be true, false or null")
    return Artifact(
        path=folder,
        saturates_without_vnni=saturates,
        measured=decisions(content.get("measured", {})),
        signature=None if content["signature"] is None else Signature.from_json(content["signature"]),
        **{key: content[key] for key in (*_TEXTS, *_OPERATORS, "files")},
    )


def as_json(decision: Measured) -> dict[str, Any]:
    """Return a decision as builtins, without what it leaves empty."""
    return {name: value for name, value in asdict(decision).items() if value not in ((), {})}


def decisions(content: Any) -> dict[str, Measured]:
    """Return the measured decisions, as they were written.

    Raises:
        ValueError: the content has another form.
    """
    if not isinstance(content, dict) or not all(map(checksums.is_sha256, content)):
        raise ValueError("measured must hold a decision for each sha256")
    return {digest: _decision(decision) for digest, decision in content.items()}


def _decision(content: Any) -> Measured:
    given = {"float_ops": [], "saved": {}, **content} if isinstance(content, dict) else {}
    if {name: type(value) for name, value in given.items()} != _DECISION:
        raise ValueError("measured must hold decisions of int8 (true or false), reason, float_ops and saved")
    names, saved = given["float_ops"], given["saved"]
    if not all(isinstance(name, str) for name in (*names, *saved)):
        raise ValueError("float_ops and saved of a decision must name operators")
    if not all(isinstance(each, float) and math.isfinite(each) for each in saved.values()):
        raise ValueError("saved of a decision must hold numbers")
    return Measured(given["int8"], given["reason"], tuple(names), saved)


def _is_record(value: Any, fields: set[str]) -> bool:
    return isinstance(value, dict) and value.keys() == fields and all(isinstance(text, str) for text in value.values())


def _check_names(artifact: Artifact) -> None:
    """Check that the files are those of the format, so that no name leads out of the folder."""
    if artifact.format not in FORMATS:
        raise ValueError(f"format {artifact.format!r} is unknown; allowed are {', '.join(map(repr, FORMATS))}")
    expected = FORMATS[artifact.format]
    known = zip(layouts(expected.files), layouts((*expected.files, *expected.further_files)), strict=True)
    given = artifact.files.keys()
    wrong = [(sorted(needed - given), sorted(given - allowed)) for needed, allowed in known]
    missing, foreign = min(wrong, key=lambda each: len(each[0]) + len(each[1]))  # of the layout that fits best
    if missing or foreign:
        raise ValueError(
            f"files must be {', '.join(expected.files)} for the format {artifact.format!r}; missing: {missing}, "
            f"not of this format: {foreign}"
        )


def _check_file(file: Path, expected: str | None, is_below_folder: bool) -> None:
    """Check that a file is one, and that its sha256 is the expected one, if any is."""
    try:
        with naming(repr(str(file))):
            if is_below_folder and file.parent.is_symlink():
                raise ValueError("lies in a link; put the folder itself in its place")
            regular_file(file)
            found = expected and checksums.of_file(file)
    except ValueError as error:
        raise ArtifactError(f"path: {error}. Copy the whole folder, or export again.") from error
    if found != expected:
        raise ArtifactError(
            f"path: {str(file)!r} was changed or truncated after export: its sha256 differs from the one in {FILE}. "
            "Copy it again from where it was exported, or export again."
        )
