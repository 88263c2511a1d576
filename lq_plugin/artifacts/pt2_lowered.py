"""A ``.pt2`` on integers in eager torch: the INT8 kernels of ``torch.compile``, without a compiler and for any shape.

In eager torch a quantized graph computes on floats: a quantized ResNet-18 (3x224x224, batch 50) takes 2.7 s of one core
of an AMD EPYC with VNNI, 1.4 times as long as FP32. Inductor's passes put oneDNN's INT8 kernels in its place before
anything is compiled; run as they are, they take a fifth of that. Outputs are the same bit by bit as those under
``torch.compile`` with ``freezing``. These passes are what torchao's ``lower_pt2e_quantized_to_x86`` consists of; that
function itself fixes the batch size.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from lq_plugin import cpu
from lq_plugin.artifacts.pt2_rounding import rounding_at_once
from lq_plugin.noise import muted

# Lowering takes 2 to 3 s of one core for ResNet-18 (11M weights), a second of which is for importing inductor. A network
# of fewer weights computes its samples in less.
LEAST_WEIGHTS = 1_000_000
_PASSES = threading.Lock()  # inductor's passes share their state


def pays(program: ExportedProgram) -> bool:
    """Whether a graph is worth lowering, and this CPU's INT8 kernels compute exact sums.

    The answer depends on the graph and the CPU alone, so that the same artifact gives the same numbers in every run.
    """
    tensors = [*program.state_dict.values(), *program.constants.values()]
    weights = sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor) and tensor.dtype == torch.int8)
    return weights >= LEAST_WEIGHTS and torch.backends.mkldnn.is_available() and cpu.has_vnni()


def lowered(program: ExportedProgram) -> fx.GraphModule:
    """Return a quantized graph over flat lists of tensors whose convolutions and products compute on integers.

    Raises:
        Exception: torch cannot lower it.
    """
    with _PASSES, muted(), torch.inference_mode(False), torch.no_grad():
        from torch._inductor.constant_folding import constant_fold
        from torch._inductor.fx_passes.freezing_patterns import freezing_passes

        module: Any = program.run_decompositions(_decompositions()).module(check_guards=False)
        _permute(module.graph)
        inputs = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
        freezing_passes(module, inputs)
        constant_fold(module)
    # What surrounds the graph checks its inputs, which the artifact's signature has done.
    made = rounding_at_once(fx.GraphModule(module, module.graph))
    pairs = torch.ops.quantized_decomposed
    in_place = {pairs.quantize_per_tensor.default: _quantize, pairs.dequantize_per_tensor.default: _dequantize}
    for node in made.graph.nodes:
        if node.target in in_place and not node.kwargs:
            node.target = in_place[node.target]
    made.recompile()
    return made


def _decompositions() -> dict[Any, Any]:
    """Decompose only what is made of other operators for every backend: convolutions and products of any kind."""
    table = torch.export.default_decompositions()
    return {operator: table[operator] for operator in table if torch._export.utils._is_cia_op(operator)}


def _permute(graph: fx.Graph) -> None:
    """Transpose weights as the passes expect it."""
    aten = torch.ops.aten
    for node in graph.nodes:
        if node.target is aten.t.default and node.args[0].meta["val"].dim() == 2:
            node.target, node.args = aten.permute.default, (node.args[0], [1, 0])


def _quantize(value: Tensor, scale: float, zero_point: int, lowest: int, highest: int, dtype: torch.dtype) -> Tensor:
    """What torch's operator computes, without a new tensor at each of five steps: half of their time is the system's.

    Source:
        ``torch/ao/quantization/fx/_decomposed.py``.
    """
    return (value.to(torch.float32) * (1.0 / scale)).round_().add_(zero_point).clamp_(lowest, highest).to(dtype)


def _dequantize(value: Tensor, scale: float, zero_point: int, lowest: int, highest: int, dtype: torch.dtype) -> Tensor:
    """What torch's operator computes, see :func:`_quantize`."""
    return value.to(torch.float32).sub_(zero_point).mul_(scale)
