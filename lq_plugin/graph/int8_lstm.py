"""LSTM layers on integers, as OpenVINO's kernel computes them: inputs and hidden states are rounded in every step.

The kernel (2026.4, oneDNN) has one scale and zero point for a layer's input and its hidden state. So both have the
same zero point here, the input is taken in units of the hidden state's scale, and the input's weights are multiplied
accordingly. It has one scale for a row of both weights, and takes those of the input gate for those of the forget gate
and the other way round, so that the two gates of a unit need the same scale. With scales of their own, a layer came
out at 26 dB instead of 30. NNCF quantizes input and hidden state on one grid without changing units: two layers of 512
had 28.8 dB on it, and 43 with this.

OpenVINO compiles one kernel for all layers of the same sizes and direction in a model, with the scales of the first of
them in it: the last of three layers came out at 9 dB where torch has 42 for the same graph. So no two layers have the
same sizes here, see :func:`give_own_sizes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lq_plugin.graph.nodes import arguments, is_constant, is_float, operator_type
from lq_plugin.graph.recurrent import Options
from lq_plugin.observers import Range
from lq_plugin.qparams import QuantSpec, activation_qparams, weight_qparams

quantized = torch.ops.quantized_decomposed
PREFIX = "int8_"  # of the module that computes an LSTM of the graph
_GRID = QuantSpec(signed=False)  # the kernel takes no signed integers
_LIMITS = (_GRID.lowest, _GRID.highest, _GRID.dtype)
_ALIGNMENT = 4  # so many products of integers are added by one instruction


def refusal(node: fx.Node) -> str | None:
    """Return why an LSTM of a graph has no such form, if so."""
    x, lengths, states, weights, *rest = arguments(node)
    if lengths is not None:
        return "its sequences are packed"
    if not all(map(_is_zero, states)):
        return "its initial states are given"  # nobody knows their range
    if not is_float(x) or not all(map(is_constant, weights)):
        return "its input is not float32, or its weights are computed in the forward"
    options = Options(*rest)
    if len(weights) != options.layers * sum(map(len, options.layer(weights, 0))):
        return "it has a projection"
    return None


def hidden_names(node: fx.Node) -> tuple[str, ...]:
    """Return the names under which the hidden states of each layer of an LSTM are observed; no node has such a name."""
    return tuple(f"{node.name}.{layer}" for layer in range(Options(*arguments(node)[4:]).layers))


def _is_zero(state: fx.Node) -> bool:
    kind = operator_type(state)
    return kind in ("zeros", "zeros_like", "new_zeros") or (kind == "full" and arguments(state)[1] == 0)


class Int8Lstm(nn.Module):
    """An LSTM without given states, of which every layer computes on integers.

    Args:
        weights: of all layers, as ``nn.LSTM`` orders them.
        options: of the operator that it stands for.
        x: lowest and highest value of the input.
        hidden: the same of each layer's hidden state.
        spec: which integers weights become.
    """

    def __init__(
        self, weights: Sequence[Tensor], options: Options, x: Range, hidden: Sequence[Range], spec: QuantSpec
    ) -> None:
        super().__init__()
        self.options, self.width = options, weights[1].shape[1]
        self.steps = [_centred(bounds) for bounds in (x, *hidden)]
        for layer in range(options.layers):
            units = self.steps[layer][0] / self.steps[layer + 1][0]
            for direction, (w, r, *biases) in enumerate(options.layer(weights, layer)):
                integers = _integers(w.detach() * units, r.detach(), spec)
                both = biases or [w.new_zeros(len(w))] * 2
                tensors = [_in_onnx_order(tensor) for tensor in (*integers, *(bias.detach() for bias in both))]
                w, r, scales, *both = tensors
                self.register_buffer(f"w{layer}_{direction}", w[None])
                self.register_buffer(f"r{layer}_{direction}", r[None])
                self.register_buffer(f"s{layer}_{direction}", scales)
                self.register_buffer(f"b{layer}_{direction}", torch.cat(both)[None])

    def inputs(self, layer: int) -> int:
        """Return how many features the input of a layer has."""
        weight: Tensor = getattr(self, f"w{layer}_0")
        return weight.shape[2]

    def widen(self, layer: int, inputs: int) -> None:
        """Give the input of a layer so many features, of which the last ones are zero."""
        for direction in range(2 if self.options.bidirectional else 1):
            weight: Tensor = getattr(self, f"w{layer}_{direction}")
            setattr(self, f"w{layer}_{direction}", F.pad(weight, (0, inputs - weight.shape[2])))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return output, last hidden states and last cell states."""
        # Batch first, as in OpenVINO's operator: transpositions to ONNX's order and back cancel each other, unless a
        # pair is between them. Two layers of 512 with 8 samples took 5.86 ms, and 6.05 with pairs between them.
        x = x if self.options.batch_first else x.transpose(0, 1)
        last = []
        for layer in range(self.options.layers):
            (given, zero_point), (scale, _) = self.steps[layer : layer + 2]
            missing = self.inputs(layer) - x.shape[2]
            x = _requantized(F.pad(x, (0, missing)) if missing else x, given, scale, zero_point)
            # A constant would be folded away, and with it the pair that the kernel needs here.
            zeros = (x[:, :1, :1] * 0).transpose(0, 1).expand(1, -1, self.width)
            start = _requantized(zeros, scale, scale, zero_point)
            outputs = []
            for direction in range(2 if self.options.bidirectional else 1):
                parts = (getattr(self, f"{name}{layer}_{direction}") for name in "wrsb")
                y, *ends = torch.ops.lq_plugin.int8_lstm_layer(
                    x.transpose(0, 1), *parts, start, zeros, scale, zero_point, direction == 1
                )
                outputs.append(y.squeeze(1).transpose(0, 1))
                last.append(ends)
            x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        output = x if self.options.batch_first else x.transpose(0, 1)
        return output, torch.cat([hidden for hidden, _ in last]), torch.cat([cell for _, cell in last])


def give_own_sizes(lstms: Iterable[Int8Lstm]) -> None:
    """Let all layers of a model differ in the sizes of their inputs and hidden states, by inputs that are zero."""
    taken = set[tuple[int, int]]()
    for lstm in lstms:
        for layer in range(lstm.options.layers):
            inputs = lstm.inputs(layer)
            while (inputs, lstm.width) in taken:
                inputs += _ALIGNMENT
            taken.add((inputs, lstm.width))
            lstm.widen(layer, inputs)


def _centred(bounds: Range) -> tuple[float, int]:
    """Scale and zero point of a range that is made as wide below zero as above it, so that all have one zero point."""
    largest = max(-bounds[0], bounds[1])
    return activation_qparams((-largest, largest), _GRID)


def _requantized(x: Tensor, given: float, taken: float, zero_point: int) -> Tensor:
    """Round to the grid of one scale, and return the same levels in another one."""
    levels = quantized.quantize_per_tensor.default(x, given, zero_point, *_LIMITS)
    restored: Tensor = quantized.dequantize_per_tensor.default(levels, taken, zero_point, *_LIMITS)
    return restored


def _integers(w: Tensor, r: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Both weights as integers, and the scale of each row; gates in torch's order."""
    spec = replace(spec, symmetric=True)  # the kernel takes no zero points of weights
    scale = weight_qparams(torch.cat([w, r], 1), spec, 0)[0].expand(len(w))
    i, f, *others = scale.chunk(4)
    scale = torch.cat([torch.maximum(i, f)] * 2 + others)
    w, r = ((weight / scale[:, None]).round().clamp(spec.lowest, spec.highest).to(spec.dtype) for weight in (w, r))
    return w, r, scale


def _in_onnx_order(tensor: Tensor) -> Tensor:
    i, f, g, o = tensor.chunk(4)
    return torch.cat([i, o, f, g])


def _layer(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    scales: Tensor,
    bias: Tensor,
    hidden: Tensor,
    cell: Tensor,
    scale: float,
    zero_point: int,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what the kernel does, step by step; shapes and gates are those of ONNX's LSTM."""
    w, r, bias = w[0] * scales[:, None], r[0] * scales[:, None], bias.view(2, -1).sum(0)
    h, c, found = hidden[0], cell[0], []
    for step in x.flip(0) if reverse else x:
        i, o, f, g = (step @ w.T + h @ r.T + bias).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = torch.fake_quantize_per_tensor_affine(
            o.sigmoid() * c.tanh(), scale, zero_point, _GRID.lowest, _GRID.highest
        )
        found.append(h)
    y = torch.stack(found[::-1] if reverse else found)
    return y.unsqueeze(1), h.unsqueeze(0).clone(), c.unsqueeze(0).clone()


def _shapes(x: Tensor, w: Tensor, r: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch = x.shape[:2]
    last = x.new_empty(1, batch, r.shape[2])
    return x.new_empty(steps, 1, batch, r.shape[2]), last, torch.empty_like(last)


torch.library.custom_op(
    "lq_plugin::int8_lstm_layer",
    _layer,
    mutates_args=(),
    schema="(Tensor x, Tensor w, Tensor r, Tensor scales, Tensor bias, Tensor hidden, Tensor cell, float scale, "
    "int zero_point, bool reverse) -> (Tensor, Tensor, Tensor)",
).register_fake(_shapes)
