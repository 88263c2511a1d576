"""The portable graph of ``torch.export``: runs wherever torch does, fastest under ``torch.compile``."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from lq_plugin.artifacts import pt2_lowered
from lq_plugin.artifacts.pt2_archive import checked
from lq_plugin.artifacts.pt2_conv1d import over_two_dimensions
from lq_plugin.artifacts.pt2_rounding import rounding_at_once
from lq_plugin.errors import ArtifactError, ExportError
from lq_plugin.graph.graph import Graph
from lq_plugin.noise import muted

FILE = "model.pt2"
CODE = """\
import torch
import torch.ao.quantization.fx._decomposed  # registers the quantize and dequantize operators

module = torch.export.load(file).module(check_guards=False)
with torch.no_grad():
    outputs = [value.numpy() for value in module(*map(torch.from_numpy, inputs))]
"""
logger = logging.getLogger("lq_plugin")
_KEPT_META = ("val", "tensor_meta")  # the rest is stack traces: paths of the machine, and most of a small file


def program_of(graph: Graph) -> ExportedProgram:
    """Export a converted graph again, with the dynamic dimensions of its signature and without stack traces."""
    shapes = tuple(
        {axis: Dim.AUTO for axis, size in enumerate(structure["shape"]) if size is None}
        for _, structure in graph.signature.tensors()
    )
    with muted(), torch.inference_mode(False), torch.no_grad():
        program = torch.export.export(graph.module, graph.example, dynamic_shapes=shapes, strict=False)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            node.meta = {key: value for key, value in node.meta.items() if key in _KEPT_META}
    program._example_inputs = None  # or the user's batch would be stored too
    return program


def export(graph: Graph, folder: Path) -> None:
    """Write ``model.pt2``.

    Raises:
        ExportError: the graph holds something that loading would refuse.
    """
    content = io.BytesIO()  # given the name of a file, torch's C++ code ends the whole process when the disk is full
    with muted():
        torch.export.save(
            program_of(replace(graph, module=_without_writes(over_two_dimensions(graph.module)))), content
        )
    (folder / FILE).write_bytes(content.getbuffer())
    try:
        checked(folder / FILE)
    except ValueError as error:
        raise ExportError(
            f"formats: 'pt2' cannot be made from this graph: it {error}. load would refuse such a file, because it "
            "could run code, change files or exhaust memory. The other formats are not affected."
        ) from error


def _without_writes(module: fx.GraphModule) -> fx.GraphModule:
    """Let a graph leave its inputs and buffers as they are, as it does in other formats; it is changed in place.

    What a forward changes in place, torch computes apart and copies back after all else.
    """
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.copy_.default and not node.users:
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def load(folder: Path, threads: int | None) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """Load the graph after checking that nothing in the file would be unpickled.

    In eager torch it computes on integers where that pays, see ``pt2_lowered.py``; else it rounds floats. Under the
    user's ``torch.compile`` it keeps the pairs of operators that make INT8 kernels.
    """
    module = load_module(folder)
    # Made by the first call: a graph that will be compiled needs none.
    eager = functools.cache(functools.partial(_eager, module, folder))

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        chosen = module if torch.compiler.is_compiling() else eager()
        with torch.no_grad():
            return list(chosen(*tensors))

    return run


def _eager(module: fx.GraphModule, folder: Path) -> fx.GraphModule:
    """Return the graph as eager torch computes it fastest."""
    if pt2_lowered.pays(module):
        try:
            return pt2_lowered.lowered(module)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            logger.warning("%s runs on floats, which is slower: torch cannot lower it (%s)", folder, reason)
    return rounding_at_once(module)


def load_module(folder: Path) -> fx.GraphModule:
    """Load the graph as a module over flat lists of tensors, fit for ``torch.compile``.

    Raises:
        ArtifactError: the file holds something that torch would unpickle or run.
    """
    import torch.ao.quantization.fx._decomposed  # registers the quantize and dequantize operators

    try:
        archive = checked(folder / FILE)
    except ValueError as error:
        raise ArtifactError(
            f"path: {str(folder / FILE)!r} {error}, which could run code or exhaust memory. It is refused: "
            "ArtifactExport never writes this. Export again from a source that you trust."
        ) from error
    with muted():
        # Guards are source code in the file, and the signature has checked what they would check.
        return torch.export.load(archive).module(check_guards=False)
