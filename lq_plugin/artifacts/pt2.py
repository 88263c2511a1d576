"""The portable graph of ``torch.export``: runs wherever torch does, fast only under ``torch.compile``."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from lq_plugin.artifacts.pt2_archive import checked
from lq_plugin.errors import ArtifactError, ExportError
from lq_plugin.graph.graph import Graph
from lq_plugin.noise import muted

FILE = "model.pt2"
_ROUND = torch.ops.aten.fake_quantize_per_tensor_affine.default
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
        torch.export.save(program_of(graph), content)
    (folder / FILE).write_bytes(content.getbuffer())
    try:
        checked(folder / FILE)
    except ValueError as error:
        raise ExportError(
            f"formats: 'pt2' cannot be made from this graph: it {error}. load would refuse such a file, because it "
            "could run code, change files or exhaust memory. The other formats are not affected."
        ) from error


def load(folder: Path, threads: int | None) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """Load the graph after checking that nothing in the file would be unpickled.

    Under the user's ``torch.compile`` it keeps the pairs of operators that make INT8 kernels.
    """
    module = load_module(folder)
    eager = _rounding_at_once(module)

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        chosen = module if torch.compiler.is_compiling() else eager
        with torch.no_grad():
            return list(chosen(*tensors))

    return run


def _rounding_at_once(module: fx.GraphModule) -> fx.GraphModule:
    """Return the graph with one operator for each quantize/dequantize pair, for eager torch; tensors are shared.

    Numbers are the same bit by bit, infinities included. Not a number differs for int8: the pair makes it zero, one
    operator the lowest value (torch 2.13, x86). torch computes a pair as seven operators over the whole tensor, which
    took half of ResNet-18's time (3x224x224, batch 50: 3.3 s a batch on one core of an AMD EPYC).
    """
    made = fx.GraphModule(module, copy.deepcopy(module.graph))
    for node in list(made.graph.nodes):
        users = list(node.users)
        if _is_pair(node, users):
            value, *qparams, _ = node.args
            with made.graph.inserting_before(node):
                rounded = made.graph.call_function(_ROUND, (value, *qparams))
            for user in users:
                user.replace_all_uses_with(rounded)
                made.graph.erase_node(user)
            made.graph.erase_node(node)
    made.recompile()
    return made


def _is_pair(node: fx.Node, users: Sequence[fx.Node]) -> bool:
    """Whether a node quantizes, and every user dequantizes what it made as it was made."""
    pairs = torch.ops.quantized_decomposed
    if node.target is not pairs.quantize_per_tensor.default or node.kwargs or not users:
        return False
    qparams: list[Any] = list(node.args[1:])
    _, zero_point, lowest, highest, dtype = qparams
    fits: bool = torch.iinfo(dtype).min <= lowest <= zero_point <= highest <= torch.iinfo(dtype).max
    return fits and all(
        user.target is pairs.dequantize_per_tensor.default and user.args == (node, *qparams) and not user.kwargs
        for user in users
    )


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
