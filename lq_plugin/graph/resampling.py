"""Poolings, resized images and extremes that ONNX computes otherwise than torch, written as it computes them alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from lq_plugin.graph.nodes import arguments, call, constant

aten = torch.ops.aten
_AVERAGES: dict[Any, int] = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
# Poolings, by the number of dimensions and the position of the argument ceil_mode.
_POOLINGS: dict[Any, tuple[int, int]] = {
    **{operator: (dims, 4) for operator, dims in _AVERAGES.items()},
    aten.max_pool1d.default: (1, 5),
    aten.max_pool2d.default: (2, 5),
    aten.max_pool3d.default: (3, 5),
}
_EXTREMES = (aten.amax.default, aten.amin.default)
_NEAREST = (aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec)


def resample_as_torch(module: fx.GraphModule) -> None:
    """Rewrite poolings, resized images and extremes in place; where sizes decide about it, only if they are fixed."""
    for node in list(module.graph.nodes):
        if node.target in _POOLINGS:
            _write_out(node, *_POOLINGS[node.target])
        if node.target in _AVERAGES:
            _average_values(module, node, _AVERAGES[node.target])
        elif node.target in _EXTREMES:
            _name_dimensions(node)
        elif node.target in _NEAREST:
            _select_pixels(module, node)
    module.recompile()


def _write_out(node: fx.Node, dims: int, position: int) -> None:
    """Give a pooling a number for each dimension, and let it round its size down where this is as large as torch's.

    torch leaves out a last window that would begin beyond the values, ONNX does not.
    """
    value, *given = arguments(node)
    given[: position - 1] = [list(each) * (dims if len(each) == 1 else 1) for each in given[: position - 1]]
    node.args = (value, *given)
    sizes, down = value.meta["val"].shape[-dims:], [*given[: position - 1], False, *given[position:]]
    if not any(given[position - 1 : position]) or not all(isinstance(size, int) for size in sizes):
        return
    operator: Any = node.target
    made = operator(torch.empty(1, 1, *sizes, device="meta"), *down)
    if made.shape[-dims:] == node.meta["val"].shape[-dims:]:
        node.args = (value, *down)


def _name_dimensions(node: fx.Node) -> None:
    """Name all dimensions of a largest or smallest value where none is named."""
    value, *given = arguments(node)
    if not any(given[:1]):
        node.args = (value, list(range(value.meta["val"].dim())), *given[1:])


def _average_values(module: fx.GraphModule, node: fx.Node, dims: int) -> None:
    """Average values alone, and multiply that by what the average makes of ones.

    ONNX's ``AveragePool`` has no divisor, and onnxruntime (1.32) counts what ``ceil_mode`` adds beyond the padding: a
    pooling of 13 to 7 positions had 15 dB where torch has 42 for the same graph.
    """
    options = dict(zip(("padding", "ceil_mode", "counted", "divisor"), arguments(node)[3:], strict=False))
    padding, ceil_mode, divisor = options.get("padding", [0]), options.get("ceil_mode", False), options.get("divisor")
    sizes = node.args[0].meta["val"].shape[-dims:]  # type: ignore[union-attr]
    fixed = all(isinstance(size, int) for size in sizes)
    if not fixed or not (divisor or (ceil_mode and options.get("counted", True))):
        return
    given, made = node.args[1:], node.meta["val"]
    node.args = (node.args[0], *(*given[:2], [])[:2], padding, ceil_mode, False)
    if not divisor and not any(padding):
        return
    operator: Any = node.target
    shares = operator(torch.ones(1, *sizes, dtype=made.dtype), *given)
    with module.graph.inserting_before(node.next):
        factor = constant(module, f"folded_{node.name}_shares", shares, node)
        product = call(module.graph, aten.mul.Tensor, (node, factor), node)
    node.replace_all_uses_with(product, delete_user_cb=lambda user: user is not product)


def _select_pixels(module: fx.GraphModule, node: fx.Node) -> None:
    """Select the nearest pixels by their index.

    Both multiply an index by a ratio in float32 and round down, torch with ``old / new`` and ONNX with the inverse:
    they differ for 3.5 % of the pairs of sizes up to 80. From 14 to 2 pixels, torch takes numbers 0 and 7, ONNX 0 and 6
    (3 dB).
    """
    value, new, *_ = arguments(node)
    shape = value.meta["val"].shape
    if new is None or not all(isinstance(size, int) for size in (*shape[2:], *new)):
        return
    if all(torch.equal(_by_torch(*sizes), _by_onnx(*sizes)) for sizes in zip(shape[2:], new, strict=True)):
        return
    with module.graph.inserting_before(node):
        for dim, size in enumerate(new, start=2):
            index = constant(module, f"folded_{node.name}_pixels_{dim}", _by_torch(shape[dim], size), node)
            value = call(module.graph, aten.index_select.default, (value, dim, index), node)
    node.replace_all_uses_with(value)
    module.graph.erase_node(node)


def _by_torch(old: int, new: int) -> Tensor:
    return (torch.arange(new, dtype=torch.float32) * (old / new)).floor().clamp(max=old - 1).long()


def _by_onnx(old: int, new: int) -> Tensor:
    ratio = torch.tensor(new, dtype=torch.float32) / old
    return (torch.arange(new, dtype=torch.float32) / ratio).floor().clamp(max=old - 1).long()
