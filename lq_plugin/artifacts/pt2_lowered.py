"""A ``.pt2`` on integers in eager torch: the INT8 kernels of ``torch.compile``, without a compiler and for any shape.

In eager torch a quantized graph computes on floats: a quantized ResNet-18 (3x224x224, batch 50) takes 2.7 s of one core
of an AMD EPYC with VNNI, 1.4 times as long as FP32. Inductor's passes put oneDNN's INT8 kernels in its place before
anything is compiled; run as they are, they take a fifth of that. Outputs equal those under ``torch.compile`` with
``freezing`` but for the float operators that it compiles: a transformer's residual MLP with GELU differed by 7e-5 of
its largest output. These passes are what torchao's ``lower_pt2e_quantized_to_x86`` consists of; that function itself
fixes the batch size.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from torch import Tensor, fx

from lq_plugin import cpu
from lq_plugin.artifacts.pt2_rounding import rounding_at_once
from lq_plugin.graph.graph import writes
from lq_plugin.noise import muted

# Lowering takes 1.7 s of one core for ResNet-18 (11M weights), 2.8 s for MobileNetV2 (3.4M) and 3.8 s for
# ViT-tiny (5.7M), once for a loaded artifact. A network of fewer weights computes its samples in less.
LEAST_WEIGHTS = 1_000_000
_CONVOLUTION = (None, None, None, [1], [0], [1], 1)  # defaults of a convolution's arguments
_PASSES = threading.Lock()  # inductor's passes share their state


def pays(module: fx.GraphModule) -> bool:
    """Whether a quantized graph is worth lowering, and this CPU's INT8 kernels compute exact sums.

    The answer depends on the graph and the CPU alone, so that the same artifact gives the same numbers in every run.
    """
    weights = sum(tensor.numel() for tensor in module.state_dict().values() if tensor.dtype == torch.int8)
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return weights >= LEAST_WEIGHTS and has_onednn and cpu.has_vnni()


def lowered(module: fx.GraphModule) -> fx.GraphModule:
    """Return a quantized graph whose convolutions and products compute on integers; tensors are shared.

    Args:
        module: a graph of ``torch.export`` over flat lists of tensors, with the fake tensors of its inputs.

    Raises:
        Exception: torch cannot lower it, or not without an operator that writes to its inputs.
    """
    with _PASSES, muted(), torch.inference_mode(False), torch.no_grad():
        from torch._inductor.constant_folding import constant_fold
        from torch._inductor.fx_passes.freezing_patterns import freezing_passes

        # Without the hooks that check inputs, which the artifact's signature has done.
        made = fx.GraphModule(module, copy.deepcopy(module.graph))
        inputs = [node.meta["val"] for node in made.graph.nodes if node.op == "placeholder"]
        _decompose(made.graph)
        freezing_passes(made, inputs)
        constant_fold(made)
    _add_out_of_place(made.graph)
    if writes(made):
        raise NotImplementedError("an operator writes to a tensor that others may read")
    made = rounding_at_once(made)
    pairs = torch.ops.quantized_decomposed
    in_place = {pairs.quantize_per_tensor.default: _quantize, pairs.dequantize_per_tensor.default: _dequantize}
    for node in made.graph.nodes:
        if node.target in in_place and not node.kwargs:
            node.target = in_place[node.target]
    made.recompile()
    return made


def _decompose(graph: fx.Graph) -> None:
    """Write convolutions and products as the passes expect them.

    ``ExportedProgram.run_decompositions`` does the same to every operator, for as long as all else takes together.
    """
    aten = torch.ops.aten
    dimensions = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
    for node in list[Any](graph.nodes):
        node.meta.setdefault("tensor_meta", node.meta.get("val"))  # the passes read shapes there
        if node.target in dimensions and not node.kwargs:
            _write_convolution(node, dimensions[node.target])
        elif node.target is aten.linear.default and not node.kwargs and node.args[1].meta["val"].dim() == 2:
            with graph.inserting_before(node):
                node.replace_all_uses_with(_product(graph, node))
            graph.erase_node(node)


def _write_convolution(node: Any, dimensions: int) -> None:
    given = (*node.args, *_CONVOLUTION[len(node.args) :])
    tensors, (stride, padding, dilation), groups = given[:3], given[3:6], given[6]
    sizes = [[*size, *size * (dimensions - len(size))][:dimensions] for size in (stride, padding, dilation)]
    node.target = torch.ops.aten.convolution.default
    node.args = (*tensors, *sizes, False, [0] * dimensions, groups)


def _product(graph: fx.Graph, node: Any) -> fx.Node:
    """The product of matrices in a linear layer; an input of more dimensions is a matrix in between."""
    aten, (value, weight, *bias) = torch.ops.aten, node.args
    shape = value.meta["val"].shape
    rows = value if len(shape) == 2 else graph.call_function(aten.reshape.default, (value, [-1, int(shape[-1])]))
    columns = graph.call_function(aten.permute.default, (weight, [1, 0]))
    if bias and bias[0] is not None:
        made = graph.call_function(aten.addmm.default, (bias[0], rows, columns))
    else:
        made = graph.call_function(aten.mm.default, (rows, columns))
    if len(shape) == 2:
        return made
    sizes = [graph.call_function(aten.sym_size.int, (value, axis)) for axis in range(len(shape) - 1)]
    return graph.call_function(aten.reshape.default, (made, [*sizes, int(weight.meta["val"].shape[0])]))


def _add_out_of_place(graph: fx.Graph) -> None:
    """Let fused residual sums of linear layers return a new tensor.

    The passes choose ``"sum"``, which writes the result into the other summand, perhaps the user's input; the schema
    does not say so. Inductor puts ``"add"`` where that is unsafe, in a later step that does not run here.
    """
    layers = torch.ops.onednn.qlinear_pointwise
    for node in graph.nodes:
        if node.target in (layers.binary, layers.binary_tensor):
            names = [argument.name for argument in node.target._schema.arguments]
            node.update_arg(names.index("binary_post_op"), "add")


def _quantize(value: Tensor, scale: float, zero_point: int, lowest: int, highest: int, dtype: torch.dtype) -> Tensor:
    """What torch's operator computes, without a new tensor at each of five steps: half of their time is the system's.

    Source:
        ``torch/ao/quantization/fx/_decomposed.py``.
    """
    return (value.to(torch.float32) * (1.0 / scale)).round_().add_(zero_point).clamp_(lowest, highest).to(dtype)


def _dequantize(value: Tensor, scale: float, zero_point: int, lowest: int, highest: int, dtype: torch.dtype) -> Tensor:
    """What torch's operator computes, see :func:`_quantize`."""
    return value.to(torch.float32).sub_(zero_point).mul_(scale)
