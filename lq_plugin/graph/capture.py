"""From a module and one real call to a graph that shares its weights. Called by prepare.py alone."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lq_plugin.errors import CaptureError, ConfigError, unknown_name
from lq_plugin.graph import nesting, signature, structure
from lq_plugin.graph.assertions import checks_left_out, remove_checks
from lq_plugin.graph.batch import BatchDims, doubled, find_batch_dims
from lq_plugin.graph.contradiction import contradiction
from lq_plugin.graph.copying import detached_copy
from lq_plugin.graph.explaining import explanation
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.integers import ints_noted, sizes_of_graph, sizes_of_numbers_fixed
from lq_plugin.graph.signature import Parameter, Signature
from lq_plugin.graph.structure import Structure
from lq_plugin.graph.torch_patches import (
    attention_in_parts,
    isolated,
    operators_found_once,
    recurrent_layers_whole,
    tensors_copied_by_graph,
)
from lq_plugin.identity import structure_digest
from lq_plugin.noise import muted
from lq_plugin.progress import note_once

Call = tuple[Sequence[Any], Mapping[str, Any]]  # arguments and keyword arguments of a forward
Dims = Mapping[str, Sequence[int]]  # of inputs, by their names: {"x": [2, 3], "batch.ids": [1]}
CAPTURED_AS = "target"  # what the module is called in its graph: parameter "0.weight" is "target.0.weight" there

logger = logging.getLogger(__name__)


class _FlatForward(nn.Module):
    """A target that takes and returns flat tensors: what is exported."""

    def __init__(self, target: nn.Module, inputs: Signature, record_output: Callable[[Structure], None]) -> None:
        super().__init__()
        self.target = target
        self._inputs = inputs
        self.names = [name for name, _ in inputs.tensors()]
        self._record_output = record_output

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self._inputs.call(tensors)
        results: list[Tensor] = []
        output = self.target(*args, **kwargs)
        self._record_output(structure.flatten(output, "output", results, of_output=True))
        if not any(True for _ in nesting.tensors(output)):
            raise CaptureError(
                f"target: the forward of {type(self.target).__name__} returns no tensor. Choose a target that does."
            )
        return tuple(results)


def capture(
    target: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_dims: Dims | None = None,
    varying: Dims | None = None,
) -> Graph:
    """Capture the forward of ``target`` with ``torch.export``.

    The module itself is not changed, nor is the state of any random generator. The batch of every input becomes dynamic
    where the model allows it: the first dimension, the second one of recurrent states, and what recurrent layers whose
    sequences are time first take for it.

    Args:
        target: the module whose forward is captured; taken in eval mode and without ``torch.compile``.
        args: positional arguments of one real call.
        kwargs: keyword arguments of that call.
        dynamic_dims: more dynamic dimensions, by the name of the input: ``{"x": [2, 3]}``, ``{"batch.ids": [1]}``.
        varying: dimensions in which calls were seen to differ; those that are not the batch become dynamic too.

    Raises:
        CaptureError: the forward cannot be captured; the message names the line and what to do.
        ConfigError: ``dynamic_dims`` names an input that does not exist.

    Example:
        >>> graph = capture(torch.nn.Linear(4, 2), [torch.ones(3, 4)])
        >>> graph.signature.tensors()[0][1]["shape"]
        [None, 4]
    """
    with isolated():
        module = detached_copy(target, share_tensors=True)
        like = signature.without_data(module.forward, args, kwargs or {})
        inputs = Signature(signature.describe(module.forward, args, kwargs or {}), {"constant": None}, like)
        tensors = inputs.flatten(args, dict(kwargs or {}))
        if not tensors:
            raise CaptureError("target: its forward was called without any tensor, so there is nothing to capture.")
        batch_dims = find_batch_dims(module, inputs, tensors)
        task = _Task(module, inputs, tensors, batch_dims, dynamic_dims or {}, varying or {})
        of_one = any(dims and t.shape[dims[0]] == 1 for t, dims in zip(tensors, task.batch_dims, strict=True))
        graph = _captured_of_one(task) if of_one else _captured(task)
    for text in graph.notes:
        note_once(text)
    return graph


@dataclass(frozen=True)
class _Task:
    """What is captured: a module, one call of it, and which dimensions are the batch or dynamic besides."""

    module: nn.Module
    inputs: Signature
    tensors: Sequence[Tensor]
    batch_dims: BatchDims
    dynamic_dims: Dims
    varying: Dims


def _captured_of_one(task: _Task) -> Graph:
    """Capture a batch of one, doubled, because torch.export would bake a one into the graph.

    Where the model takes no batch of two, or does something else with it, the graph is that of the real batch, and
    takes no other.
    """
    failure: CaptureError | None = None
    try:
        graph = _captured(replace(task, tensors=doubled(task.tensors, [dims[:1] for dims in task.batch_dims])))
        reason = contradiction(graph.module, graph.signature, task.module, task.tensors)
    except CaptureError as error:
        failure, reason = error, "its forward cannot be captured with a batch of two"
    if reason is None:
        return graph
    try:
        graph = _captured(replace(task, batch_dims=((),) * len(task.tensors)))
    except CaptureError as error:
        raise failure or error from None
    fixed = f"the graph of {type(task.module).__name__} takes only batches of one, like its example: {reason}"
    return replace(graph, notes=(*graph.notes, fixed))


def _captured(task: _Task) -> Graph:
    tensors = doubled(task.tensors, [()] * len(task.tensors))
    outputs, checks = list[Structure](), list[str]()
    flat = _FlatForward(task.module, task.inputs, outputs.append)
    program = _export(flat, tensors, _dynamic_shapes(task, tensors), checks)
    module = program.module(check_guards=False)
    remove_checks(module)
    return Graph(
        module=module,
        signature=Signature(
            _with_shapes(task.inputs.parameters, _input_shapes(program)), outputs[-1], task.inputs.like
        ),
        example=tuple(tensor.cpu() for tensor in tensors),
        batch_dims=task.batch_dims,
        modules=tuple(name for name, _ in task.module.named_modules() if name),
        structure=structure_digest(module),
        gives_samples=_gives_samples(program, task),
        notes=(*_left_out(checks), *_dropped(type(task.module).__name__, outputs[-1])),
    )


def _left_out(checks: Sequence[str]) -> Iterator[str]:
    return (f"the check of data in {place} is left out of the graph" for place in dict.fromkeys(checks))


def _dropped(target: str, output: Structure) -> Iterator[str]:
    for name, kind in structure.dropped(output, "output"):
        yield f"{target}: a graph cannot return the {kind} in {name}; artifacts give None in its place"


def private_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Copy a call to the CPU, so that it shares no tensor with the caller."""
    with torch.inference_mode(False):
        copied: Call = nesting.mapped(lambda tensor: tensor.detach().cpu().clone(), (tuple(args), dict(kwargs)))
    return copied


def _dynamic_shapes(task: _Task, tensors: Sequence[Tensor]) -> tuple[tuple[dict[int, Any], ...]]:
    names = [name for name, _ in task.inputs.tensors()]
    for name in task.dynamic_dims:
        if name not in names:
            raise unknown_name("dynamic_dims", name, names)
    shapes = []
    for name, tensor, batch in zip(names, tensors, task.batch_dims, strict=True):
        dims: dict[int, Any] = dict.fromkeys(batch, Dim.AUTO)
        for dim in task.dynamic_dims.get(name, ()):
            if not -tensor.dim() <= dim < tensor.dim():
                raise ConfigError(f"dynamic_dims: {name!r} has {tensor.dim()} dimensions, got {dim}.")
            dims[dim % tensor.dim()] = Dim.DYNAMIC
        for dim in task.varying.get(name, ()):
            dims.setdefault(dim, Dim.DYNAMIC)
        shapes.append(dims)
    return (tuple(shapes),)


def _input_shapes(program: ExportedProgram) -> list[list[int | None]]:
    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    return [[size if isinstance(size, int) else size.node.maybe_as_int() for size in value.shape] for value in values]


def _gives_samples(program: ExportedProgram, task: _Task) -> bool:
    """Whether an output has as many samples as the inputs, or all outputs are single numbers."""
    batches = [tensor.shape[dims[0]] for tensor, dims in zip(task.tensors, task.batch_dims, strict=True) if dims]
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    outputs = (values.get(name) for name in program.graph_signature.user_outputs)
    shapes = [output.shape for output in outputs if isinstance(output, Tensor) and output.dim()]
    sizes = {size if isinstance(size, int) else size.node.hint for shape in shapes for size in shape}
    return not shapes or not batches or batches[0] in sizes


def _with_shapes(parameters: Sequence[Parameter], shapes: Sequence[list[int | None]]) -> tuple[Parameter, ...]:
    def put(given: Structure) -> Structure:
        ((kind, content), *_) = given.items()
        if kind == "tensor":
            return given | {"shape": shapes[content]}
        if kind in structure.OF_CONSTANTS:
            return given
        return {kind: [[key, put(item)] for key, item in content]}

    return tuple(replace(parameter, given=put(parameter.given)) for parameter in parameters)


def _export(flat: _FlatForward, tensors: tuple[Tensor, ...], shapes: Any, checks: list[str]) -> ExportedProgram:
    with (
        muted(),
        recurrent_layers_whole(),
        attention_in_parts(),
        sizes_of_numbers_fixed(),
        checks_left_out(checks.append),
        tensors_copied_by_graph(),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # where a failing export prints the whole graph
        try:
            program = _exported(flat, tensors, shapes)
            # Makes in-place operators functional, and decomposes nothing else but these.
            with operators_found_once():
                functional: ExportedProgram = program.run_decompositions(_decompositions())
        except CaptureError:
            raise
        except Exception as error:
            logger.debug("torch.export failed", exc_info=True)
            raise CaptureError(
                explanation(flat.target, error, flat.names)
            ) from None  # else pages of tracing frames are printed
    return functional


def _exported(flat: _FlatForward, tensors: tuple[Tensor, ...], shapes: Any) -> ExportedProgram:
    """Export a forward; once more, with ``int`` replaced, where that may be why it fails or fixes a dimension."""
    failure: Exception | None = None
    with ints_noted(flat.target) as noted:
        try:
            with sizes_of_graph(flat.target):
                program = torch.export.export(flat, tensors, dynamic_shapes=shapes, strict=False)
            if not _fixes_what_may_vary(program, shapes):
                return program
        except Exception as error:
            failure = error
    if noted:
        with contextlib.suppress(Exception), sizes_of_graph(flat.target, numbers=True):
            return torch.export.export(flat, tensors, dynamic_shapes=shapes, strict=False)
    if failure is not None:
        raise failure
    return program


def _fixes_what_may_vary(program: ExportedProgram, shapes: Any) -> bool:
    """Whether a dimension that may be dynamic is fixed in a graph."""
    return any(
        size[dim] is not None for size, dims in zip(_input_shapes(program), shapes[0], strict=True) for dim in dims
    )


def _decompositions() -> dict[Any, Any]:
    """How a step of a recurrent network is made of linear layers, and a scattered mean of sums."""
    table, aten = torch.export.default_decompositions(), torch.ops.aten
    cells = (aten.lstm_cell.default, aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default)
    return {cell: table[cell] for cell in cells} | {aten.scatter_reduce.two: _scattered_mean}


def _scattered_mean(
    start: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """A scattered mean as a sum and a count: ONNX has no such mean, and onnxscript 0.7.2 writes a plain scatter."""
    if reduce != "mean" or not start.is_floating_point():
        return NotImplemented
    total = start.scatter_reduce(dim, index, source, "sum", include_self=include_self)
    own = torch.ones_like(start) if include_self else torch.zeros_like(start)
    return total / own.scatter_add(dim, index, torch.ones_like(source)).clamp(min=1)
