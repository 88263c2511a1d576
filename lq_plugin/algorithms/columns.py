"""Layers as matrix products: a layer's output is the matrix of its weight times columns of its input (im2col)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, fx
from torch.nn.functional import pad

from lq_plugin.graph.nodes import arguments, is_constant
from lq_plugin.graph.operators import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, operator_of

_BIASES = {**dict.fromkeys(CONVOLUTIONS | {"linear"}, 2), "addmm": 0, "matmul": None}  # positions


@dataclass(frozen=True)
class Product:
    """A convolution, or a product with a constant matrix.

    Its *matrix* has the shape (groups, outputs, inputs), its *columns* (columns, groups, inputs), and their results
    (columns, groups, outputs). Inputs and outputs are those of one group at one position.

    Args:
        name: the operator type.
        input_position: position of the argument that is an activation.
        weight_position: position of the argument that is the weight.
        bias_position: position of the argument that is the bias; ``None`` if there is no bias.
        shape: the weight's shape.
        stride: of a convolution, one number for each spatial dimension, like the next three.
        padding: before and after.
        dilation: distance between the kernel's elements.
        output_padding: what a transposed convolution adds at the end.
        groups: number of groups.
    """

    name: str
    input_position: int
    weight_position: int
    bias_position: int | None
    shape: torch.Size
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.name in TRANSPOSED_CONVOLUTIONS

    @property
    def kernel(self) -> torch.Size:
        """Size of a convolution's kernel; empty for matrices."""
        return self.shape[2:]

    @property
    def channel_dim(self) -> int:
        """Dimension of the output's channels, counted from the end, because a call may have no batch dimension."""
        return -1 - len(self.kernel)

    def shared(self, per_channel: bool) -> tuple[int, ...]:
        """Dimensions of the matrix that share one scale; the groups of a transposed convolution share theirs."""
        if not per_channel:
            return (0, 1, 2)
        return (0, 2) if self.transposed else (2,)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight, or a tensor of its shape, as a matrix."""
        if self.transposed:
            inputs, outputs = self.shape[0] // self.groups, self.shape[1]
            parts = weight.reshape(self.groups, inputs, outputs, *self.kernel).transpose(1, 2)
            return parts.flip(self._kernel_dims).reshape(self.groups, outputs, -1)
        if self.kernel:
            return weight.reshape(self.groups, self.shape[0] // self.groups, -1)
        return (weight if self.name == "linear" else weight.t())[None]

    def weight(self, matrix: Tensor) -> Tensor:
        """Return a matrix in the shape of the weight; the inverse of :meth:`matrix`."""
        if self.transposed:
            parts = matrix.reshape(*matrix.shape[:2], self.shape[0] // self.groups, *self.kernel)
            return parts.flip(self._kernel_dims).transpose(1, 2).reshape(self.shape)
        return matrix.reshape(self.shape) if self.kernel or self.name == "linear" else matrix[0].t()

    @property
    def _kernel_dims(self) -> list[int]:
        return list(range(3, 3 + len(self.kernel)))

    def columns(self, values: Tensor, results: Tensor, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw columns of a call, and their results.

        Args:
            values: the layer's input.
            results: the layer's output.
            count: how many to draw, without repetition; all of them if there are fewer.
            generator: draws them.
        """
        if not self.kernel:
            windows, results = values.reshape(-1, values.shape[-1]), results.reshape(-1, results.shape[-1])
        else:
            batched = values.dim() == len(self.shape)
            windows = self._windows(values if batched else values[None])
            results = (results if batched else results[None]).movedim(1, -1)
        places = results.shape[:-1]
        total = math.prod(places)
        drawn = torch.arange(total) if total <= count else torch.randperm(total, generator=generator)[:count]
        where = torch.unravel_index(drawn, places)
        return self._by_group(windows[where].flatten(1)), self._by_group(results[where].flatten(1))

    def _by_group(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), self.groups, rows.shape[1] // self.groups)

    def _windows(self, values: Tensor) -> Tensor:
        """A convolution's padded input as a view of shape (batch, positions…, channels, kernel…)."""
        padding = self.padding
        if self.transposed:
            values = _stuffed(values, self.stride)
            reach = [gap * (size - 1) for gap, size in zip(self.dilation, self.kernel, strict=True)]
            padding = tuple(
                (far - before, far - after + extra)
                for far, (before, after), extra in zip(reach, padding, self.output_padding, strict=True)
            )
        windows = pad(values, [side for sides in reversed(padding) for side in sides])
        steps = (1,) * len(self.kernel) if self.transposed else self.stride
        for dim, (size, step, gap) in enumerate(zip(self.kernel, steps, self.dilation, strict=True), 2):
            windows = windows.unfold(dim, gap * (size - 1) + 1, step)[..., ::gap]
        return windows.movedim(1, 1 + len(self.kernel))


def product_of(node: fx.Node) -> Product | None:
    """Describe a layer with constant weight and bias; ``None`` for everything else."""
    operator = operator_of(node)
    if operator is None or operator.weight is None or operator.name not in _BIASES or node.kwargs:
        return None
    args = arguments(node)
    position = _BIASES[operator.name]
    bias = args[position] if position is not None and position < len(args) else None
    weight = args[operator.weight]
    if not is_constant(weight) or not (bias is None or is_constant(bias)):
        return None
    shape, channels = weight.meta["val"].shape, node.meta["val"].shape
    (x,) = operator.activations
    product = Product(operator.name, x, operator.weight, position if bias is not None else None, torch.Size(shape))
    if operator.name in CONVOLUTIONS:
        return _convolution(product, *args[3:])
    if len(shape) != 2 or (bias is not None and tuple(bias.meta["val"].shape) != (channels[-1],)):
        return None  # a vector as weight, or a bias that is not one number for each output channel
    return product


def _convolution(product: Product, *options: Any) -> Product:
    dims = len(product.kernel)
    defaults = (1, 0, 0, 1, 1) if product.transposed else (1, 0, 1, 1)
    given = (*options, *defaults[len(options) :])
    if product.transposed:
        stride, padding, extra, groups, dilation = given
    else:
        (stride, padding, dilation, groups), extra = given, 0
    dilation = _each(dilation, dims)
    reach = [gap * (size - 1) for gap, size in zip(dilation, product.kernel, strict=True)]
    if isinstance(padding, str):
        sides = [(far // 2, far - far // 2) if padding == "same" else (0, 0) for far in reach]
    else:
        sides = [(side, side) for side in _each(padding, dims)]
    return replace(
        product,
        stride=_each(stride, dims),
        padding=tuple(sides),
        dilation=dilation,
        output_padding=_each(extra, dims),
        groups=groups,
    )


def _each(given: Any, dims: int) -> tuple[int, ...]:
    """One number for each dimension, from a number or from a list of one or of all."""
    values = tuple(given) if isinstance(given, Sequence) else (given,)
    return values * dims if len(values) == 1 else values


def _stuffed(values: Tensor, stride: Sequence[int]) -> Tensor:
    """Put zeros between the elements: a transposed convolution is then an ordinary one with a stride of 1."""
    sizes = [step * (size - 1) + 1 for size, step in zip(values.shape[2:], stride, strict=True)]
    stuffed = values.new_zeros(*values.shape[:2], *sizes)
    places = (slice(None), slice(None), *(slice(None, None, step) for step in stride))
    stuffed[places] = values
    return stuffed
