"""The graph of a target: what is observed, quantized and exported."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from lq_plugin.graph.nodes import operator_type
from lq_plugin.graph.signature import Signature
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.noise import muted


@dataclass(frozen=True)
class Graph:
    """A target's forward as a graph over flat lists of tensors, be it float or with quantize/dequantize pairs.

    Args:
        module: takes the input tensors in the signature's order and returns a tuple of tensors. It shares the weights
            of the module it was captured from until :func:`~lq_plugin.graph.folding.fold` makes a snapshot.
        signature: how the target is called and what it returns.
        example: the captured inputs on the CPU, a batch of one doubled unless the model takes no other.
        batch_dims: which dimensions of each input are the batch; none of an input without samples.
        modules: names of the target's submodules, for patterns.
        structure: digest of what was captured, without the values of its weights. Statistics describe the values of one
            structure; names of values mean nothing elsewhere.
        gives_samples: whether outputs have as many samples as inputs. A graph network's do not: a node is no sample.
        notes: what the graph leaves out of the forward, or fixes, as sentences for the user.
        digest: of what was captured and of its weights, before folding; see :func:`~lq_plugin.identity.graph_digest`.
            Empty until a snapshot is made, because until then the weights may change.
    """

    module: fx.GraphModule
    signature: Signature
    example: tuple[Tensor, ...]
    batch_dims: tuple[tuple[int, ...], ...]
    modules: tuple[str, ...]
    structure: str
    gives_samples: bool = True
    notes: tuple[str, ...] = ()
    digest: str = ""

    @property
    def operators(self) -> set[str]:
        """Types of its operators, such as ``"conv2d"``."""
        return {operator_type(node) for node in self.module.graph.nodes if node.op == "call_function"}

    @property
    def batch_size(self) -> int:
        """How many samples the example has."""
        return self.samples(self.example)

    def samples(self, tensors: Sequence[Tensor]) -> int:
        """How many samples a call with these inputs has."""
        return next(iter(self._batches(tensors)), 1)

    def is_divisible(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a call can be split into samples: its batch dimensions are all dynamic and of the same size."""
        structures = (structure for _, structure in self.signature.tensors())
        pairs = zip(structures, self.batch_dims, strict=True)
        dynamic = (not dims or structure["shape"][dims[0]] is None for structure, dims in pairs)
        return all(dynamic) and len(set(self._batches(tensors))) < 2 and self.gives_samples

    def _batches(self, tensors: Sequence[Tensor]) -> list[int]:
        """Size of the batch dimension of each input that has one."""
        return [tensor.shape[dims[0]] for tensor, dims in zip(tensors, self.batch_dims, strict=True) if dims]

    def selected(self, tensors: Sequence[Tensor], samples: Tensor) -> tuple[Tensor, ...]:
        """Return some samples of a call; the whole call if it cannot be divided.

        Args:
            tensors: the flat inputs.
            samples: indices of the samples in the call.
        """
        if not self.is_divisible(tensors):
            return tuple(tensors)
        return tuple(
            tensor.index_select(dims[0], samples.to(tensor.device)) if dims else tensor
            for tensor, dims in zip(tensors, self.batch_dims, strict=True)
        )

    def resized(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return the example at another batch size; the example as it is where its batch is fixed or not the first."""
        tensors = []
        for (_, structure), tensor, dims in zip(self.signature.tensors(), self.example, self.batch_dims, strict=True):
            if None not in structure["shape"]:
                tensors.append(tensor)
            elif dynamic := [dim for dim in dims if structure["shape"][dim] is None]:
                copies = -(-batch_size // self.batch_size)
                tensors.append(torch.cat([tensor] * copies, dynamic[0]).narrow(dynamic[0], 0, batch_size).contiguous())
            else:
                return self.example
        try:
            with isolated():
                self.module(*tensors)
        except Exception:  # the first dimensions are alike by chance, or are time
            return self.example
        return tuple(tensors)


def duplicate(graph: Graph, share_tensors: bool = False) -> Graph:
    """Copy a graph together with its weights, so that the copy can be changed.

    Args:
        graph: it is not changed.
        share_tensors: keep the very same parameters and buffers, so that the copy costs no memory. Its operators and
            what they read can be changed, the tensors themselves cannot. A graph that writes to tensors gets its own.
    """
    module, memo = graph.module, dict[int, object]()
    if share_tensors and not writes(module):
        memo = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    with muted(), torch.inference_mode(False):
        return replace(graph, module=copy.deepcopy(module, memo))


def writes(module: fx.GraphModule) -> bool:
    """Whether any operator of a graph writes to a tensor that it is given."""
    graphs = (part.graph for part in module.modules() if isinstance(part, fx.GraphModule))
    targets = (node.target for graph in graphs for node in graph.nodes)
    return any(isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable for target in targets)
