"""Sensitivity: which operators cost accuracy in INT8, from one pass over a few samples.

What: each operator runs once in float and once with quantized inputs and weight. The difference of the results is
carried to the outputs by gradients of random projections (see :func:`~lq_plugin.algorithms.fisher.costs`). This gives
the error at the outputs as a share of their power. Errors of single operators add up.

When: to choose which operators stay float. The estimate is right to first order. Rank correlation with exhaustive
measurement (Spearman, mean of 5 seeds, 32 samples): .98 on average over the 23 models of the tests' zoo, .88 for the
worst of them, .98 for the ResNet that ends in a mean. Squared errors weighted by the diagonal Fisher estimate, which
takes errors at different positions for independent, had .89, .40 and .77. A 6-layer text encoder whose operators cost
nearly the same has .95 and had .99 with the diagonal, because signed sums over few samples are noisier.

Cost: for each sample, two forward and eight backward passes, and each quantized operator once more. For the 6-layer
text encoder this is a third of the time of exhaustive measurement (36 operators, one thread), 1.6 times as long as with
the diagonal; for the zoo together, 1.25 times.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lq_plugin.algorithms.fisher import costs, pieces, power
from lq_plugin.candidate import Candidate, StaticCandidate
from lq_plugin.coverage import QuantizedOp
from lq_plugin.errors import CalibrationError, ConfigError
from lq_plugin.graph.calibration import calls
from lq_plugin.graph.nodes import arguments
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.learning import Sensitivity


def sensitivity(
    candidate: Candidate, batches: Iterable[Any], *, exhaustive: bool = False, seed: int = 0
) -> tuple[Sensitivity, ...]:
    """Rank the operators of a static candidate by the error that they cause in INT8, the most costly one first.

    Args:
        candidate: what ``quantize`` returned for a static scheme.
        batches: forward inputs, each a tensor, a tuple (args) or a dict (kwargs), as ``quantize`` takes them. At most
            32 samples are used.
        exhaustive: measure instead of estimating: run each operator alone in INT8, all others in float, and compare the
            outputs. Takes one forward pass for each operator and batch.
        seed: of the estimate's random projections.

    Raises:
        CalibrationError: there is no batch.
        ConfigError: the candidate is not static.
        ArtifactError: a batch does not fit the model's forward.

    Example:
        >>> import torch
        >>> from lq_plugin import Scheme, quantize
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(32, 4)
        >>> candidate = quantize(model, [x], Scheme(algorithms=()))
        >>> sorted(operator.name for operator in sensitivity(candidate, [x]))
        ['0.linear', '2.linear_1']
    """
    if not isinstance(candidate, StaticCandidate):
        raise ConfigError(
            f"candidate: {candidate.name} is {candidate.scheme.method}, which has no fixed ranges to judge. Give a "
            "static one: quantize(model, batches, 'static')."
        )
    signature = candidate.reference.signature
    given = [signature.flatten(args, kwargs) for args, kwargs in calls(batches)]
    if not given:
        raise CalibrationError("batches: it is empty. Give at least one batch of forward inputs.")
    return ranked(candidate, given, exhaustive=exhaustive, seed=seed)


def ranked(
    candidate: StaticCandidate, tensors: Sequence[Sequence[Tensor]], *, exhaustive: bool = False, seed: int = 0
) -> tuple[Sensitivity, ...]:
    """Rank operators as :func:`sensitivity` does, on calls of the graph.

    If algorithms learnt something else for some runtimes, the largest error of an operator on any of them counts.

    Args:
        candidate: it is not changed.
        tensors: for each call, the graph's flat input tensors.
        exhaustive: measure each operator alone.
        seed: of the estimate's random projections.
    """
    errors, listed = dict[str, float](), dict[str, QuantizedOp]()
    for each in {id(own): own for own in map(candidate.on, candidate.runtimes)}.values():
        of_each = _exhaustive(each, tensors) if exhaustive else _estimated(each, tensors, seed)
        errors |= {node: max(error, errors.get(node, 0.0)) for node, error in of_each.items()}
        listed |= each.united.quantized
    total = sum(errors.values())
    found = [
        Sensitivity(op.name, op.op, node, errors[node], errors[node] / total if total else 0.0)
        for node, op in listed.items()
    ]
    return tuple(sorted(found, key=lambda each: -each.error))


class _Rounding(fx.Interpreter):
    """Runs the float graph, and can run any of its operators with quantized inputs and weight.

    Args:
        candidate: whose graph runs, and with which integers.
        alone: the one operator that runs in INT8.
    """

    def __init__(self, candidate: StaticCandidate, alone: str | None = None) -> None:
        super().__init__(candidate.graph.module)
        self.candidate, self.alone = candidate, alone

    def run_node(self, n: fx.Node) -> Any:
        return self.rounded(n) if n.name == self.alone else super().run_node(n)

    def rounded(self, node: fx.Node) -> Any:
        """Compute an operator on quantized inputs and weight."""
        if node.name in self.candidate.united.hidden:
            return self.candidate.integer_lstm(node)(*self.fetch_args_kwargs_from_env(node)[0][:1])
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self._integers(source, node))
        return getattr(self, node.op)(node.target, args, kwargs)

    def _integers(self, source: fx.Node, node: fx.Node) -> Any:
        placed, value = self.candidate.united, self.env[source]
        if source.name in placed.inputs.get(node.name, ()):
            return self.candidate.rounded_activation(source.name, value)
        if node.name in placed.weights and source.name == placed.weights[node.name][0]:
            return self.candidate.rounded_weight(node.name, value)
        return value


class _Judging(_Rounding):
    """Computes the error of each operator's result, all in one run, and of each of the results of an LSTM.

    Args:
        candidate: whose graph runs.

    Attributes:
        errors: by the name of the result.
        operators: which operator gives that result.
    """

    def __init__(self, candidate: StaticCandidate) -> None:
        super().__init__(candidate)
        self.errors: dict[str, tuple[Tensor]] = {}
        self.operators: dict[str, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.candidate.united.hidden:
            rounded = self.rounded(n)
            for part in n.users:  # that take one of its results: gradients are known of these
                index = arguments(part)[1]
                self._judge(part, n, rounded[index], result[index])
        elif n.name in self.candidate.united.quantized and isinstance(result, Tensor) and result.is_floating_point():
            self._judge(n, n, self.rounded(n), result)
        return result

    def _judge(self, value: fx.Node, operator: fx.Node, rounded: Tensor, result: Tensor) -> None:
        self.errors[value.name] = ((rounded - result).nan_to_num(0.0, 0.0, 0.0),)
        self.operators[value.name] = operator.name


def _estimated(candidate: StaticCandidate, tensors: Sequence[Sequence[Tensor]], seed: int) -> dict[str, float]:
    graph, generator = candidate.graph, torch.Generator().manual_seed(seed)
    found = []
    for piece in pieces(graph, tensors):
        with isolated():
            judging = _Judging(candidate)
            judging.run(*(tensor.detach().clone() for tensor in piece))
        summed: dict[str, float] = defaultdict(float)
        for name, (cost,) in costs(graph, judging.errors, piece, generator).items():
            summed[judging.operators[name]] += cost
        found.append((graph.samples(piece), summed))
    return _averaged(candidate.united.quantized, found)


def _exhaustive(candidate: StaticCandidate, tensors: Sequence[Sequence[Tensor]]) -> dict[str, float]:
    graph, names = candidate.graph, candidate.united.quantized.keys()
    found = []
    for piece in pieces(graph, tensors):
        with isolated():
            wanted = _Rounding(candidate).run(*(tensor.detach().clone() for tensor in piece))
            noises = {
                name: _noise(_Rounding(candidate, name).run(*(tensor.detach().clone() for tensor in piece)), wanted)
                for name in names
            }
        found.append((graph.samples(piece), noises))
    return _averaged(names, found)


def _averaged(names: Iterable[str], found: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Average the costs of operators over calls, weighted by their number of samples."""
    samples = sum(size for size, _ in found)
    return {name: sum(size * each.get(name, 0.0) for size, each in found) / samples for name in names}


def _noise(given: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Noise as a share of the power, summed over the floating-point outputs."""
    return math.fsum(
        (noisy - clean).double().square().nan_to_num(0.0, 0.0, 0.0).sum().item() / power(clean)
        for noisy, clean in zip(given, wanted, strict=True)
        if isinstance(clean, Tensor) and clean.is_floating_point()
    )
