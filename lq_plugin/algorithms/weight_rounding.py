"""Learnt rounding: integer weights of a dynamic candidate that change the results of its layers least.

What: for each layer, the second moments of its inputs are summed up while the float model runs; then its weights are
rounded column by column, and the columns that follow compensate for each error (GPTQ). An LSTM or a GRU has two
matrices in each layer and direction: one is learnt from the layer's input, the other from its hidden states, which are
the layer's outputs one step earlier. Scales stay as they are: a weight at the end of its channel's range is not moved.
So the learnt weights lie on the very grid that every format finds for them, and become the same integers in each. An
artifact has the same operators and is as fast as without.

When: above all weights of 7 bits (``targets_cpu="any"``, CPUs without VNNI), and recurrent layers. With 8 bits, the
error of the activations is often so much larger that a step gains less than the margin and is refused.

Cost: one run of the float model, and a factorization of each matrix: 1 to 4 CPU seconds for the models below, judging
included, with 192 samples and one thread. Matrices with more than 5,792 inputs are left as they are.

Measured on reloaded artifacts with 192 samples to learn from and 192 others. SQNR in dB; "refused" where 64 held-out
samples gained less than .3 dB:

| model | bits | onnxruntime | torch |
| --- | --- | --- | --- |
| LSTM 2×128, temperatures, trained | 8 | 68.8 → 70.2 | 68.7 → 70.2 |
| the same | 7 | 67.5 → 69.9 | 67.5 → 70.2 |
| LSTM 64, random weights and inputs | 8, 7 | 43.0, 41.2: refused | 42.9, 41.2: refused |
| GRU 2×96 in both directions, random weights | 8 | 40.9 → 41.4 | 35.4 → 35.7 |
| the same | 7 | 39.2 → 40.9 | 34.6 → 35.6 |
| the same, trained | 7 | 48.4 → 48.9 | 36.1 → 36.9 |
| MLP 2×256, trained | 8 | 36.9: refused | 36.9: refused |
| the same | 7 | 36.2 → 36.6 | 36.2 → 36.6 |
| encoder, 2 layers of 64, trained | 8, 7 | 30.4, 30.0: refused | 30.9, 30.7: refused |

Learning the ranges too, or correcting biases, gained no more than .25 dB on these.

Not learnt: weights that something else reads too (a table that is tied to the last linear layer), weights that are
parametrized, those of layers with a forward of their own, and those that only a graph has as a layer, such as the
projections of ``nn.MultiheadAttention``.

Source: Frantar et al., "GPTQ" (2023), https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from lq_plugin.algorithms.rounding import Moments, grid, rounded
from lq_plugin.candidate import DynamicCandidate
from lq_plugin.graph.capture import private_call
from lq_plugin.graph.copying import detached_copy
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.qparams import QuantSpec

_MOST_MOMENTS = 2**27  # numbers that are summed up in one run of the model: 1 GiB
_LARGEST = 2**25  # of a single matrix; wider layers, of more than 5,792 inputs, are left as they are

Columns = Iterator[tuple[str, Tensor]]  # a weight's name, and what it multiplies: (columns, inputs)


def weight_rounding(candidate: DynamicCandidate, calls: Sequence[Sequence[Tensor]], seed: int) -> DynamicCandidate:
    """Learn the rounding of a candidate's weights.

    Args:
        candidate: it is not changed.
        calls: samples to learn from, as calls of the graph: lists of its flat input tensors.
        seed: of a forward that draws random numbers.

    Returns:
        A candidate with weights on their grid, or ``candidate`` itself if no weight can be learnt.
    """
    matrices = _matrices(candidate)
    if not matrices or not calls:
        return candidate
    module = detached_copy(candidate.module)
    with isolated():
        torch.default_generator.manual_seed(seed)  # isolated() restores it, and not those of every GPU
        for group in _groups(matrices):
            for matrix in _observed(candidate, group, calls):
                learnt = matrix.rounded(candidate.scheme.weights)
                if learnt is not None:
                    getattr(module.get_submodule(matrix.path), matrix.name).copy_(learnt)
    return replace(candidate, module=module, float_graph=candidate.reference)


@dataclass
class _Matrix:
    """A weight of a layer, and the second moments of what it is multiplied with.

    Args:
        path: of the layer.
        name: of the weight.
        weight: as it was trained, of shape (outputs, inputs).
        inputs: the sum of ``x xᵀ``.
    """

    path: str
    name: str
    weight: Tensor
    inputs: Tensor | None = None

    def see(self, columns: Tensor) -> None:
        """Add columns, of shape (columns, inputs)."""
        sums = (columns.mT @ columns).double()
        self.inputs = sums if self.inputs is None else self.inputs + sums

    def rounded(self, spec: QuantSpec) -> Tensor | None:
        """Return the weight on its grid; ``None`` if nothing finite was seen."""
        if self.inputs is None or not self.inputs.isfinite().all() or not self.inputs.any():
            return None
        inputs, matrix = self.inputs[None], self.weight.detach().double()[None]
        level = inputs.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        given = Moments(inputs, matrix[:, :0], level, 1)
        to = grid(matrix, spec, (2,) if spec.per_channel else (0, 1, 2))
        return (rounded(matrix, given, to, keep_ends=True) * to.scale)[0].float()


def _matrices(candidate: DynamicCandidate) -> list[_Matrix]:
    """The weights that can be learnt: of layers that become INT8, and read by nothing else."""
    uses = Counter(tensor.data_ptr() for tensor in _different(candidate.module))
    return [
        _Matrix(layer.paths[0], name, weight)
        for layer in candidate.survey.chosen
        if layer.kind in _COLUMNS and not layer.own_forward and not parametrize.is_parametrized(layer.module)
        for name, weight in layer.module.named_parameters(recurse=False)
        if name.startswith("weight") and uses[weight.data_ptr()] == 1 and 0 < weight.shape[1] ** 2 <= _LARGEST
    ]


def _different(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of all layers, those that two layers share twice."""
    for part in module.modules():
        yield from (tensor for tensor in (*part._parameters.values(), *part._buffers.values()) if tensor is not None)


def _groups(matrices: Sequence[_Matrix]) -> Iterator[list[_Matrix]]:
    """Matrices whose moments fit into memory together."""
    group: list[_Matrix] = []
    for matrix in matrices:
        if sum(each.weight.shape[1] ** 2 for each in (*group, matrix)) > _MOST_MOMENTS:
            yield group
            group = []
        group.append(matrix)
    yield group


def _observed(
    candidate: DynamicCandidate, matrices: Sequence[_Matrix], calls: Sequence[Sequence[Tensor]]
) -> Iterator[_Matrix]:
    """Run the float model, and yield the matrices with the moments that they see; memory is freed one by one."""
    probe, kinds = detached_copy(candidate.module), {layer.paths[0]: layer.kind for layer in candidate.survey.chosen}
    for path in dict.fromkeys(matrix.path for matrix in matrices):
        here = {matrix.name: matrix for matrix in matrices if matrix.path == path}
        _watch(probe.get_submodule(path), _COLUMNS[kinds[path]], here)
    for tensors in calls:
        args, kwargs = private_call(*candidate.graph.signature.call(tensors))
        probe(*args, **kwargs)
    for matrix in matrices:
        yield matrix
        matrix.inputs = None


def _watch(layer: nn.Module, columns_of: Callable[..., Columns], matrices: Mapping[str, _Matrix]) -> None:
    """Show matrices what a layer multiplies them with; the layer is changed for that."""
    forward = layer.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        for name, columns in columns_of(layer, *args, **kwargs):
            if name in matrices:
                matrices[name].see(columns)
        return forward(*args, **kwargs)

    layer.forward = watched


def _of_linear(layer: nn.Module, input: Tensor) -> Columns:  # noqa: A002  (as torch names it)
    yield "weight", _rows(input)


def _of_cell(layer: nn.Module, input: Tensor, hx: Any = None) -> Columns:  # noqa: A002  (as torch names it)
    yield "weight_ih", _rows(input)
    if hx is not None:  # else it is zero
        yield "weight_hh", _rows(hx if isinstance(hx, Tensor) else hx[0])


def _rows(given: Tensor) -> Tensor:
    return given.reshape(-1, given.shape[-1])


def _of_recurrent(layer: Any, input: Any, hx: Any = None) -> Columns:  # noqa: A002  (as torch names it)
    """What the matrices of an LSTM or a GRU are multiplied with, layer by layer; sequences are taken as packed ones."""
    function: Any = torch.lstm if isinstance(layer, nn.LSTM) else torch.gru
    if isinstance(input, Tensor) and input.dim() == 2:  # one sequence without a batch
        input = input.unsqueeze(0 if layer.batch_first else 1)  # noqa: A001
        hx = None if hx is None else tuple(state.unsqueeze(1) for state in _states(hx))
    data, sizes = _packed(input, layer.batch_first)
    directions = 2 if layer.bidirectional else 1
    if hx is None:
        states = [data.new_zeros(layer.num_layers * directions, int(sizes[0]), layer.hidden_size)] * 2
    else:
        order = input.sorted_indices if isinstance(input, PackedSequence) else None
        states = [state if order is None else state.index_select(1, order) for state in _states(hx)]
    for number in range(layer.num_layers):
        here = slice(number * directions, (number + 1) * directions)
        weights = [weight for each in layer.all_weights[here] for weight in each]
        first, *cell = (state[here] for state in states)
        start = (first, *cell) if isinstance(layer, nn.LSTM) else first
        output = function(data, sizes, start, weights, layer.bias, 1, 0.0, False, layer.bidirectional)[0]
        for direction, hidden in enumerate(output.chunk(directions, 1)):
            suffix = f"l{number}{'_reverse' * direction}"
            yield f"weight_ih_{suffix}", data
            yield f"weight_hh_{suffix}", _before(hidden.split(sizes.tolist()), first[direction], bool(direction))
        data = output


def _packed(given: Any, batch_first: bool) -> tuple[Tensor, Tensor]:
    """The rows of a sequence, step after step, and how many there are of each."""
    if isinstance(given, PackedSequence):
        return given.data, given.batch_sizes
    steps = given.transpose(0, 1) if batch_first else given
    return steps.flatten(0, 1), torch.full(steps.shape[:1], steps.shape[1])


def _states(hx: Any) -> Sequence[Tensor]:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _before(steps: Sequence[Tensor], start: Tensor, backwards: bool) -> Tensor:
    """The hidden states that each step starts from, given those that it ends with.

    Args:
        steps: of shape (rows, hidden); later steps of a packed sequence have fewer rows.
        start: those that each row starts from.
        backwards: whether steps are taken from the last one to the first.
    """
    if not backwards:
        return torch.cat([start[: len(steps[0])], *(one[: len(two)] for one, two in itertools.pairwise(steps))])
    following = (*steps[1:], steps[0][:0])
    parts = ((after, start[len(after) : len(step)]) for step, after in zip(steps, following, strict=True))
    return torch.cat([part for pair in parts for part in pair])


_COLUMNS: Mapping[str, Callable[..., Columns]] = {
    "linear": _of_linear,
    **dict.fromkeys(("lstm", "gru"), _of_recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_cell"), _of_cell),
}
