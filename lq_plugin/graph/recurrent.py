"""Recurrent layers as one operator of a graph, with sequences of any length, packed ones too.

``torch.export`` unrolls a recurrent layer over the length that the example happens to have, and cannot take in packed
sequences at all. While a graph is captured, ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` therefore call an operator of our
own, which gives the same numbers and stays whole; see torch_patches.py.

Inside a captured graph a packed sequence is a padded one, time first, and its lengths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

_SCHEMA = (
    "(Tensor x, Tensor? lengths, Tensor[] states, Tensor[] weights, bool has_biases, int layers, bool bidirectional, "
    "bool batch_first, str nonlinearity) -> (Tensor, Tensor, Tensor)"
)
T = TypeVar("T")
LAYERS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def _define(kind: str) -> Any:
    """Register ``lq_plugin::<kind>``: output, last hidden state, and last cell state where there is one."""
    operator = torch.library.custom_op(
        f"lq_plugin::{kind}", functools.partial(_run, kind), mutates_args=(), schema=_SCHEMA
    )
    operator.register_fake(functools.partial(_shapes, kind))
    return getattr(torch.ops.lq_plugin, kind)


def _run(
    kind: str,
    x: Tensor,
    lengths: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    nonlinearity: str,
) -> tuple[Tensor, Tensor, Tensor]:
    function: Any = getattr(torch, f"rnn_{nonlinearity}" if kind == "rnn" else kind)
    count = layers * (2 if bidirectional else 1)
    batch = x.shape[0 if batch_first else 1]
    given = list(states) or [x.new_zeros(count, batch, size) for size in _state_sizes(kind, weights)]
    start: Any = given if kind == "lstm" else given[0]
    options = (has_biases, layers, 0.0, False, bidirectional)
    if lengths is None:
        output, hidden, *cell = function(x, start, weights, *options, batch_first)
    else:
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=True)
        output, hidden, *cell = function(packed.data, packed.batch_sizes, start, weights, *options)
        output, _ = pad_packed_sequence(PackedSequence(output, packed.batch_sizes), total_length=x.shape[0])
    return output.contiguous(), hidden.clone(), cell[0].clone() if cell else x.new_empty(0)


def _shapes(
    kind: str,
    x: Tensor,
    lengths: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    nonlinearity: str,
) -> tuple[Tensor, Tensor, Tensor]:
    directions, batch = 2 if bidirectional else 1, x.shape[0 if batch_first else 1]
    for state in states:  # a comparison, as it ties dynamic sizes to one another
        if state.shape[:2] != (layers * directions, batch):
            raise ValueError(f"states of shape {list(state.shape)} for {layers * directions} layers, batch {batch}")
    size, *cell_size = _state_sizes(kind, weights)
    hidden, *cell = (x.new_empty(layers * directions, batch, each) for each in (size, *cell_size))
    return x.new_empty(*x.shape[:2], directions * size), hidden, cell[0] if cell else x.new_empty(0)


def _state_sizes(kind: str, weights: Sequence[Tensor]) -> list[int]:
    """Width of the hidden state and, for an LSTM, of the cell state; they differ where there is a projection."""
    hidden = weights[1].shape[1]
    return [hidden, weights[0].shape[0] // 4] if kind == "lstm" else [hidden]


OPERATORS = {kind: _define(kind) for kind in LAYERS}
# Functions that compute the same as these operators and have gradients; the operators themselves have none.
DIFFERENTIABLE: dict[Any, Callable[..., Any]] = {
    operator.default: functools.partial(_run, kind) for kind, operator in OPERATORS.items()
}


@dataclass(frozen=True)
class Options:
    """What these operators take after their weights."""

    has_biases: bool
    layers: int
    bidirectional: bool
    batch_first: bool
    nonlinearity: str

    def layer(self, weights: Sequence[T], index: int) -> list[Sequence[T]]:
        """Return the weights of each direction of a layer, where there is no projection."""
        each, directions = 4 if self.has_biases else 2, 2 if self.bidirectional else 1
        start = each * directions * index
        return [weights[at : at + each] for at in range(start, start + each * directions, each)]


def hidden_states(x: Tensor, weights: Sequence[Tensor], options: Options) -> Iterator[Tensor]:
    """Yield the hidden states of each layer of an LSTM that is given none, in all steps: they are its output."""
    one = astuple(replace(options, layers=1))
    for layer in range(options.layers):
        x, _, _ = _run("lstm", x, None, [], [w for group in options.layer(weights, layer) for w in group], *one)
        yield x


def forward_of(kind: str) -> Callable[..., Any]:
    """Return the forward of a kind of recurrent layer, by our operator."""

    def forward(self: Any, input: Any, hx: Any = None) -> Any:  # noqa: A002  (as torch names it)
        packed = isinstance(input, PackedSequence)
        x, lengths = (input.data, input.batch_sizes.lq_lengths) if packed else (input, None)
        batched = x.dim() == 3
        states = [] if hx is None else list(hx) if kind == "lstm" else [hx]
        if not batched:
            x, states = x.unsqueeze(0 if self.batch_first else 1), [state.unsqueeze(1) for state in states]
        if packed and input.sorted_indices is not None:
            states = [state.index_select(1, input.sorted_indices) for state in states]
        output, *last = OPERATORS[kind](
            x,
            lengths,
            states,
            self._flat_weights,
            self.bias,
            self.num_layers,
            self.bidirectional,
            self.batch_first and not packed,
            getattr(self, "nonlinearity", ""),
        )
        if packed and input.unsorted_indices is not None:
            last = [state.index_select(1, input.unsorted_indices) for state in last[: 2 if kind == "lstm" else 1]]
        if packed:
            output = PackedSequence(output, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        if not batched:
            output, last = output.squeeze(0 if self.batch_first else 1), [state.squeeze(1) for state in last]
        return output, ((last[0], last[1]) if kind == "lstm" else last[0])

    return forward


def pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Pack in the way of a graph; what torch takes for the sizes of batches carries the lengths."""
    sizes: Any = lengths.new_empty(0)
    sizes.lq_lengths = lengths
    return x.transpose(0, 1) if batch_first else x, sizes


def unpack(data: Tensor, sizes: Any, batch_first: bool, value: float, total: Any) -> tuple[Tensor, Tensor]:
    """Undo :func:`pack`; a ``total`` of 0 means that none was asked for."""
    lengths, steps = sizes.lq_lengths, data.shape[0]
    inside = torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths
    data = data.where(inside.view(*inside.shape, *(1,) * (data.dim() - 2)), value)
    if total:
        data = pad(data, (*(0, 0) * (data.dim() - 1), 0, total - steps), value=value)
    else:
        longest = lengths.max().item()
        torch._check(longest >= 1)  # type: ignore[no-untyped-call]
        torch._check(longest <= steps)  # type: ignore[no-untyped-call]
        data = data.narrow(0, 0, longest)
    return data.transpose(0, 1) if batch_first else data, lengths
