"""What a format is, and the literal table of those that exist.

A format holds a graph, or, as ``torch`` does, the INT8 layers of a module, around which the user's class is put again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lq_plugin.artifacts import onnx, onnx_dynamic, onnx_profile, openvino, pt2, torch_layers
from lq_plugin.coverage import Coverage, Duration, Kernel
from lq_plugin.errors import ConfigError, require, unknown_name
from lq_plugin.graph.graph import Graph

if TYPE_CHECKING:
    from lq_plugin.candidate import DynamicCandidate

DEFAULT_FORMATS = ("onnx", "openvino", "pt2")
ALWAYS = {"dynamic": ("torch",)}  # formats that are always made of a method's candidates, asked for or not
Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Factory = Callable[[], nn.Module]


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
        refuses: why candidates of a method cannot be written, by method.
        refuses_operators: why graphs with an operator cannot be written, by operator.
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
    refuses_operators: Mapping[str, str] = field(default_factory=dict)
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
        refuses_operators=openvino.REFUSES,
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


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Check that formats exist and that what they need is installed.

    Raises:
        ConfigError: an unknown format, with the nearest valid names, or none at all.
        MissingExtraError: naming the extra to install.
    """
    if isinstance(formats, str) or not isinstance(formats, Sequence) or not formats:
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
