"""Weights that are computed from weights, BatchNorm and identities, folded before anything is quantized.

torchao's own fold changes the results of a convolution that others use besides its BatchNorm, and takes the weight of
every convolution and linear layer to be a plain parameter. Here new constants are made for each operator, so weights
that several operators share stay right, and a BatchNorm that cannot be folded becomes a multiplication and an addition.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from lq_plugin.graph.graph import Graph, duplicate
from lq_plugin.graph.nodes import arguments, attribute, call, constant, is_inserted, operator_type
from lq_plugin.graph.resampling import resample_as_torch
from lq_plugin.identity import graph_digest
from lq_plugin.noise import muted

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_ABSORBING = (
    aten.linear.default,
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    *_TRANSPOSED,
)
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
_CASTS = (aten.detach.default, aten.alias.default, aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout)
_GROUPS = 3  # position of this argument in transposed convolutions, after the bias


def fold(graph: Graph) -> Graph:
    """Return a snapshot of the graph on its own weights, with constants and BatchNorm folded and values renamed.

    The names of values (``conv2d``, ``conv2d_1``, …) depend on the graph alone, so statistics gathered in one process
    fit the graph captured in another. Nodes inserted since do not change them when a graph is folded again. The
    digest is that of the graph as given: folding is float arithmetic, and rounds differently from one machine to
    another.
    """
    with muted(), torch.inference_mode(False), torch.no_grad():
        snapshot = duplicate(graph)
        for parameter in snapshot.module.parameters():
            parameter.requires_grad_(False)
        drop_identities(snapshot.module)
        resample_as_torch(snapshot.module)
        fold_constants(snapshot.module)
        fold_batch_norm(snapshot.module)
        return replace(snapshot, module=_renamed(snapshot.module), digest=graph_digest(graph.module))


def drop_identities(module: fx.GraphModule) -> None:
    """Remove operators that return their input unchanged, so that a layer and its activation are adjacent."""
    for node in list(module.graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif _is_identity(node):
            node.replace_all_uses_with(arguments(node)[0])
    _clean(module)


def fold_constants(module: fx.GraphModule) -> None:
    """Compute once what depends on parameters and buffers alone, unless the result is larger than what it is made of.

    Weight norm, or the slices of an attention's one weight for query, key and value, become plain weights.
    """
    known = _attributes(module)
    folded: dict[fx.Node, Tensor] = {}
    for node in module.graph.nodes:
        if not _is_computable(node, known):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        value = node.target(*args, **kwargs)
        if not isinstance(value, Tensor):
            known[node] = value
        elif value.numel() <= sum(_size(known[source]) for source in node.all_input_nodes):
            known[node] = folded[node] = value
    for node, value in folded.items():
        if not all(user in folded for user in node.users):
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(constant(module, f"folded_{node.name}", value, node))
    _clean(module)


def fold_batch_norm(module: fx.GraphModule) -> None:
    """Remove every BatchNorm from the graph: into the layer before it, where that layer's result has no other use."""
    for node in list(module.graph.nodes):
        if node.target is not _BATCH_NORM:
            continue
        layer, *statistics = arguments(node)[:5]
        with module.graph.inserting_before(node):
            if not all(map(_is_fixed, statistics)):
                result = _written_out(module, node)
            elif _absorbs(layer, node):
                _absorb(module, layer, *_affine(module, node))
                result = layer
            else:
                result = _multiplied_and_added(module, node, *_affine(module, node))
        for user in list(node.users):  # one reads the result, others the unused statistics
            if arguments(user)[1] == 0:
                user.replace_all_uses_with(result)
    _clean(module)


def strip_unused(module: fx.GraphModule) -> None:
    """Delete every parameter and buffer that neither the graph nor a module that it calls reads."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    called = {node.target for node in module.graph.nodes if node.op == "call_module"}
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    for name in [name for name, _ in named]:
        if name not in read and name.rpartition(".")[0] not in called:
            path, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(path), attribute)


def share_equal(module: fx.GraphModule) -> None:
    """Let ``get_attr`` nodes that read equal tensors read the same one, so that tied weights are stored once."""
    owners: dict[tuple[object, ...], Any] = {}
    for node, tensor in _attributes(module).items():
        content = hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()).digest()
        node.target = owners.setdefault((tensor.dtype, tuple(tensor.shape), content), node.target)
    strip_unused(module)
    module.recompile()


def _renamed(module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        kept = node.op == "placeholder" or is_inserted(node)
        name = node.name if kept else operator_type(node).replace(".", "_")
        args = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
        copies[node] = graph.create_node(node.op, node.target, *args, name=name)
        copies[node].meta = node.meta.copy()
    graph._codegen = module.graph._codegen
    module.graph = graph
    return module


def _attributes(module: fx.GraphModule) -> dict[fx.Node, Any]:
    """The tensors that nothing in the graph writes to, by the node that reads them."""
    written = {
        source
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for source in node.all_input_nodes
    }
    found = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and node not in written:
            path, _, name = node.target.rpartition(".")
            value = getattr(module.get_submodule(path), name)
            if isinstance(value, Tensor):
                found[node] = value
    return found


def _is_identity(node: fx.Node) -> bool:
    if node.target in _DROPOUTS:
        return arguments(node)[2] is False
    if node.target not in _CASTS or node.kwargs.get("memory_format") is not None:
        return False
    given, result = arguments(node)[0].meta["val"], node.meta["val"]
    return bool(given.dtype == result.dtype and given.device == result.device)


def _is_computable(node: fx.Node, known: Mapping[fx.Node, Any]) -> bool:
    if node.op != "call_function" or not node.all_input_nodes or not all(n in known for n in node.all_input_nodes):
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags


def _size(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else sum(map(_size, value))


def _is_fixed(argument: object) -> bool:
    return argument is None or (isinstance(argument, fx.Node) and argument.op == "get_attr")


def _affine(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Scale and shift, in double precision, of a BatchNorm with fixed statistics."""
    weight, bias, mean, variance = (
        None if argument is None else attribute(module, argument).double() for argument in arguments(node)[1:5]
    )
    assert mean is not None
    assert variance is not None
    scale = (variance + arguments(node)[6]).rsqrt()
    scale = scale if weight is None else scale * weight
    return scale, -mean * scale if bias is None else bias - mean * scale


def _absorbs(layer: fx.Node, batch_norm: fx.Node) -> bool:
    """Whether a BatchNorm can go into the layer before it: fixed weights, channels in one place, no other use."""
    if layer.target not in _ABSORBING or set(layer.users) != {batch_norm}:
        return False
    weights = arguments(layer)[1:3]
    return all(map(_is_fixed, weights)) and bool(layer.meta["val"].dim() == weights[0].meta["val"].dim())


def _absorb(module: fx.GraphModule, layer: fx.Node, scale: Tensor, shift: Tensor) -> None:
    inputs, weight, bias, *others = (*arguments(layer), None)[: max(3, len(layer.args))]
    tensor = attribute(module, weight)
    if layer.target in _TRANSPOSED:
        groups = others[_GROUPS] if len(others) > _GROUPS else 1
        by_group = tensor.double().view(groups, -1, *tensor.shape[1:])
        scaled = (by_group * scale.view(groups, 1, -1, *(1,) * (tensor.dim() - 2))).flatten(0, 1)
    else:
        scaled = tensor.double() * scale.view(-1, *(1,) * (tensor.dim() - 1))
    shifted = shift if bias is None else shift + attribute(module, bias).double() * scale
    with module.graph.inserting_before(layer):
        new_weight = constant(module, f"folded_{layer.name}_weight", scaled.to(tensor.dtype), weight)
        new_bias = constant(module, f"folded_{layer.name}_bias", shifted.to(tensor.dtype), weight)
    layer.args = (inputs, new_weight, new_bias, *others)


def _multiplied_and_added(module: fx.GraphModule, node: fx.Node, scale: Tensor, shift: Tensor) -> fx.Node:
    result: fx.Node = arguments(node)[0]
    value = result.meta["val"]
    shape = (-1, *(1,) * (value.dim() - 2))
    for target, name, tensor in ((aten.mul.Tensor, "scale", scale), (aten.add.Tensor, "shift", shift)):
        factor = constant(module, f"folded_{node.name}_{name}", tensor.view(shape).to(value.dtype), node)
        result = call(module.graph, target, (result, factor), node)
    return result


def _written_out(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The formula of a BatchNorm whose statistics or weights the forward computes."""
    value, weight, bias, mean, variance, _, epsilon = arguments(node)
    shape = [-1, *(1,) * (value.meta["val"].dim() - 2)]

    def made(target: Any, *args: Any) -> fx.Node:
        return call(module.graph, target, args, node)

    def by_channel(given: fx.Node) -> fx.Node:
        return made(aten.reshape.default, given, shape)

    spread = made(aten.rsqrt.default, made(aten.add.Tensor, by_channel(variance), epsilon))
    result = made(aten.mul.Tensor, made(aten.sub.Tensor, value, by_channel(mean)), spread)
    if weight is not None:
        result = made(aten.mul.Tensor, result, by_channel(weight))
    return result if bias is None else made(aten.add.Tensor, result, by_channel(bias))


def _clean(module: fx.GraphModule) -> None:
    module.graph.eliminate_dead_code()
    strip_unused(module)
    module.recompile()
