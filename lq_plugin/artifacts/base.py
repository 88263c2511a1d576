"""Artifacts: written to a temporary folder and renamed, checked by checksum, loaded back as modules.

An artifact's folder holds the runtime's own files and ``artifact.json``: format, call signature, coverage and the
sha256 of every file, itself included. Nothing in it is unpickled.

A format holds a graph, or, as ``torch`` does, the INT8 layers of a module, around which the user's class is put again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lq_plugin import cpu
from lq_plugin.artifacts import description, onnx, onnx_dynamic, onnx_profile, openvino, pt2, signing, torch_layers
from lq_plugin.artifacts.description import Artifact as Artifact
from lq_plugin.coverage import Coverage, Duration, Kernel
from lq_plugin.durable import put_in_place
from lq_plugin.errors import ArtifactError, ConfigError, ExportError, LqError, UnsupportedError, require, unknown_name
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.signature import Signature
from lq_plugin.scheme import as_dict

if TYPE_CHECKING:
    from lq_plugin.candidate import Candidate, DynamicCandidate

DEFAULT_FORMATS = ("onnx", "openvino", "pt2")
ALWAYS = {"dynamic": ("torch",)}  # formats that are always made of a method's candidates, asked for or not
Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Factory = Callable[[], nn.Module]
logger = logging.getLogger("lq_plugin")
_warned: set[Path] = set()  # artifacts that load has warned of, because they saturate here


@dataclass(frozen=True)
class Format:
    """How one format is written and read.

    Args:
        runtime: what executes it, and so where quantize/dequantize pairs are placed.
        extra: the extra that installs what it needs; ``None`` where the core is enough.
        packages: the modules of that extra which must be importable.
        files: the names of its files.
        further_files: the names of files that it has only where they are needed.
        export: writes a graph's files into a folder, be it float or with quantize/dequantize pairs.
        writers: by method, what writes a candidate's files into a folder where that takes more than a converted graph;
            called with the number of threads that will be used, or ``None``.
        load: reads that folder into a function over flat lists of tensors, with a number of threads or ``None``.
        module: reads that folder into a module that is slow as it is and fast under ``torch.compile``, which is how its
            latency is measured.
        kernels: lists the kernels that the runtime chose for that folder's layers, from its own optimized graph.
        profile: lists how long each node of that graph takes, in the order in which they run, by the runtime's own
            profiler; called with the flat inputs of a call and a number of threads.
        rebuild: reads that folder into a module, around which the factory's result is put.
        refuses: why candidates cannot be written, by method or by an operator of theirs.
        annotate: says in that folder's files what made them and from what; called with texts by name.
        code: imports, an empty line, and Python that runs the file named ``file`` with nothing but numpy and the
            runtime, from ``inputs``, a list of arrays, to ``outputs``, a sequence of arrays; empty where a class is
            needed.
        never_saturates: whether its kernels use 7 bits for a layer's input where 8 could saturate.
    """

    runtime: str
    extra: str | None
    packages: tuple[str, ...]
    files: tuple[str, ...]
    further_files: tuple[str, ...] = ()
    export: Callable[[Graph, Path], None] | None = None
    writers: Mapping[str, Callable[[DynamicCandidate, Path, int | None], Coverage]] = field(default_factory=dict)
    load: Callable[[Path, int | None], Run] | None = None
    module: Callable[[Path], nn.Module] | None = None
    kernels: Callable[[Path], Sequence[Kernel]] | None = None
    profile: Callable[[Path, Sequence[Tensor], int | None], Sequence[Duration]] | None = None
    rebuild: Callable[[Path, Factory], nn.Module] | None = None
    refuses: Mapping[str, str] = field(default_factory=dict)
    annotate: Callable[[Path, Mapping[str, str]], None] | None = None
    code: str = ""
    never_saturates: bool = False

    @property
    def lane(self) -> str:
        """The runtime's name beside the others when latency is measured."""
        return "torch.compile" if self.module is not None else self.runtime


FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        "onnxruntime",
        "onnx",
        ("onnx", "onnx_ir", "onnxscript", "onnxruntime"),
        (onnx.FILE,),
        (onnx.WEIGHTS,),
        export=onnx.export,
        writers={"dynamic": onnx_dynamic.export},
        load=onnx.load,
        kernels=onnx.kernels,
        profile=onnx_profile.profile,
        annotate=onnx.annotate,
        code=onnx.CODE,
    ),
    "openvino": Format(
        "openvino",
        "openvino",
        ("onnx", "onnx_ir", "onnxscript", "openvino"),
        openvino.FILES,
        export=openvino.export,
        load=openvino.load,
        kernels=openvino.kernels,
        profile=openvino.profile,
        code=openvino.CODE,
        refuses=openvino.REFUSES,
    ),
    "pt2": Format(
        "torch",
        None,
        (),
        (pt2.FILE,),
        export=pt2.export,
        load=pt2.load,
        module=pt2.load_module,
        code=pt2.CODE,
        refuses={"dynamic": "torch.export cannot capture torch's dynamic INT8 layers; the format 'torch' holds them"},
    ),
    "torch": Format(
        "torch",
        None,
        (),
        (torch_layers.LAYERS, torch_layers.TENSORS),
        writers={"dynamic": torch_layers.export},
        rebuild=torch_layers.rebuild,
        refuses={"static": "a static candidate is a graph without the user's class; the format 'pt2' holds it"},
        never_saturates=True,
    ),
}


class ArtifactModule(nn.Module):
    """An artifact as a module, called like its target and returning what its target returns.

    Tensors given on another device are copied to the CPU, where artifacts run.
    """

    def __init__(self, artifact: Artifact, signature: Signature, run: Run) -> None:
        super().__init__()
        self.artifact = artifact
        self.signature = signature
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the artifact.

        Raises:
            ArtifactError: the call does not fit the captured signature, or the runtime fails.
        """
        tensors = self.signature.flatten(args, kwargs)
        for index, tensor in enumerate(tensors):  # what follows takes half a microsecond where nothing is to be changed
            if tensor.requires_grad or not (tensor.is_cpu and tensor.is_contiguous()):
                tensors[index] = tensor.detach().cpu().contiguous()
        try:  # not _refused: entering it takes a microsecond, and a small model takes 70
            return self.signature.unflatten(self.run(tensors))
        except LqError:
            raise
        except Exception as error:
            raise _refusal(self.artifact, error) from error


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Check that formats exist and that what they need is installed.

    Raises:
        ConfigError: an unknown format, with the nearest valid names, or none at all.
        MissingExtraError: naming the extra to install.
    """
    if isinstance(formats, str) or not formats:
        raise ConfigError(f"formats: {formats!r} is not a list of formats. Allowed: {', '.join(map(repr, FORMATS))}.")
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("formats", str(name), FORMATS)
        for package in FORMATS[name].packages:
            require(package, FORMATS[name].extra or "", f"formats: {name!r}")
    return tuple(formats)


def formats_of(method: str, formats: Sequence[str]) -> tuple[str, ...]:
    """Return the formats to make of a method's candidates: those asked for, and those that are always made."""
    return tuple(dict.fromkeys((*formats, *ALWAYS.get(method, ()))))


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
    if threads is not None and threads < 1:
        raise ConfigError(f"threads: {threads} is too small. Allowed: 1 or more, or None for the runtime's choice.")
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


def _write(candidate: Any, folder: Path, chosen: Format, threads: int | None) -> Coverage:
    write = chosen.writers.get(candidate.scheme.method)
    if write is not None:
        return write(candidate, folder, threads)
    assert chosen.export is not None
    if refused := candidate.graph.operators & chosen.refuses.keys():
        raise UnsupportedError(chosen.refuses[min(refused)])
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


def rearranged(artifact: Artifact) -> Artifact:
    """Return an artifact whose files have the names that Hugging Face's libraries look for; see ``layout.py``."""
    description.rearrange(artifact)
    return read(artifact.path)


def read(path: str | os.PathLike[str]) -> Artifact:
    """Read an artifact's description and check every file against it.

    Raises:
        ArtifactError: the folder is not an artifact, or a file in it is missing, changed, or leads out of the folder.
    """
    return description.read(Path(path), FORMATS)


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    factory: Factory | None = None,
    verify: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Load an artifact as a module with the call signature and output structure of its target.

    Lightning is not needed, nor is the user's code for a format that holds a graph. Nothing is unpickled.

    Args:
        path: an artifact's folder.
        threads: size of onnxruntime's or OpenVINO's thread pool; their own choice by default. torch's formats use the
            threads of torch, see ``torch.set_num_threads``.
        factory: for the format ``"torch"``: the target's class, or anything that returns a float module of the same
            structure when called without arguments.
        verify: PEM file of the public key of who signed it, see :func:`~lq_plugin.sign`; what is not signed with that
            key, or not as it was signed, is refused.

    Raises:
        ArtifactError: the folder is not an artifact, a file in it is missing, was changed or is refused by its runtime,
            the signature does not match, or the factory's module has another structure.
        ConfigError: the format needs a factory, and none was given, or ``verify`` is no public key.
        MissingExtraError: its runtime is not installed, or what checks signatures.
    """
    if verify is not None:
        signing.check(path, verify)
    artifact = read(path)
    _warn_of_saturation(artifact)
    chosen = FORMATS[artifact.format]
    if chosen.rebuild is not None:
        if factory is None:
            raise ConfigError(
                f"factory: the format {artifact.format!r} holds INT8 layers without the code around them. Give the "
                "class of the target, load(path, factory=MyModel), or a function that returns an instance."
            )
        given = factory()  # what the user's own code raises is not the artifact's fault
        with _refused(artifact):
            return chosen.rebuild(artifact.path, lambda: given)
    assert chosen.load is not None
    if artifact.signature is None:
        raise ArtifactError(f"path: {str(artifact.path)!r} has no call signature. Export again.")
    with _refused(artifact):
        return ArtifactModule(artifact, artifact.signature, chosen.load(artifact.path, threads))


def _warn_of_saturation(artifact: Artifact) -> None:
    """Warn, once for each artifact, that this CPU's results may be wrong."""
    place = artifact.path.absolute()
    if not artifact.saturates_without_vnni or place in _warned or not cpu.saturates():
        return
    _warned.add(place)
    logger.warning(
        "%s has weights of 8 bits, and this CPU (%s) has no VNNI: sums that do not fit into 16 bits are cut off, and "
        "outputs may be less accurate than where it was measured. Export again with targets_cpu='any'.",
        artifact.path,
        cpu.name(),
    )


@contextmanager
def _refused(artifact: Artifact) -> Iterator[None]:
    """Name the artifact that a runtime refuses: files that pass our checks may still be invalid for it."""
    try:
        yield
    except LqError:
        raise
    except Exception as error:
        raise _refusal(artifact, error) from error


def _refusal(artifact: Artifact, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"path: {str(artifact.path)!r} is refused by {FORMATS[artifact.format].runtime} "
        f"({type(error).__name__}: {' '.join(_lines(error))[:300]}). Export again."
    )


def _lines(error: BaseException) -> list[str]:
    """What an error says, without empty lines; at least one."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
