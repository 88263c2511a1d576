"""A forward's call signature and output structure as plain data, so that an artifact is called like its target.

Graphs and runtimes take and give flat lists of tensors. A :class:`Signature` says how a call's arguments become that
list and how the list of results becomes the output again. It is made of builtins only and is stored as JSON. See
:mod:`lq_plugin.graph.structure` for the structures in it.
"""

from __future__ import annotations

import dataclasses
import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lq_plugin.errors import ArtifactError, ConfigError, unknown_name
from lq_plugin.graph import structure_json
from lq_plugin.graph.nesting import mapped, retyped
from lq_plugin.graph.structure import CONSTANTS, Structure, flatten, flatten_as, name_of, tensors_of, unflatten

_GIVEN = {"VAR_POSITIONAL": "tuple", "VAR_KEYWORD": "dict"}  # what is captured of parameters that take any number
_KINDS = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD", "VAR_POSITIONAL", "KEYWORD_ONLY", "VAR_KEYWORD")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a forward and what it was given when the graph was captured.

    Args:
        name: the parameter's name.
        kind: the name of its ``inspect`` kind, such as ``"POSITIONAL_OR_KEYWORD"``.
        given: structure of the captured argument.
        default: structure of its default; ``None`` where there is none or it is not a plain constant.
    """

    name: str
    kind: str
    given: Structure
    default: Structure | None = None


@dataclass(frozen=True)
class Signature:
    """How a target is called and what it returns.

    Args:
        parameters: the forward's parameters, in order.
        output: structure of what it returns; ``"tensor"`` is the index in the flat list of results.
        like: the captured arguments without data, by the names of the parameters, so that dataclasses and named tuples
            have their classes. Not written to files.
    """

    parameters: tuple[Parameter, ...]
    output: Structure
    like: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Return the tensors of a call in the graph's order.

        Raises:
            ArtifactError: the call has another structure, dtype, fixed dimension or constant than the captured one.
        """
        if not kwargs and self._tensors is not None and _fit(args, self._tensors):
            return list(args)
        bound = self._bind(args, kwargs)
        return [tensor for p in self.parameters for tensor in flatten_as(p.given, bound[p.name], p.name)]

    def call(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments and keyword arguments of a call with these tensors; the opposite of :meth:`flatten`."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in self.parameters:
            value = unflatten(parameter.given, tensors)
            if parameter.name in self.like:
                value = retyped(value, self.like[parameter.name])
            if parameter.kind == "VAR_POSITIONAL":
                args.extend(value)
            elif parameter.kind == "VAR_KEYWORD":
                kwargs.update(value)
            elif parameter.kind == "KEYWORD_ONLY":
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return tuple(args), kwargs

    def unflatten(self, results: Sequence[Any]) -> Any:
        """Return the target's output, made of the graph's flat results."""
        return unflatten(self.output, results)

    def tensors(self) -> list[tuple[str, Structure]]:
        """Name and structure of every input tensor, in the graph's order."""
        return [found for parameter in self.parameters for found in tensors_of(parameter.given, parameter.name)]

    def to_json(self) -> dict[str, Any]:
        """Return the signature as builtins of JSON, which has no infinite numbers."""
        parameters = [dataclasses.asdict(parameter) for parameter in self.parameters]
        made: dict[str, Any] = structure_json.encoded({"parameters": parameters, "output": self.output})
        return made

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """Read what :meth:`to_json` has written, from an untrusted file.

        Raises:
            ValueError: the data is not what :meth:`to_json` returns.
        """
        try:
            data = structure_json.decoded(data)
            read = cls(tuple(_parameter(parameter) for parameter in data["parameters"]), data["output"])
            structure_json.check(read.output, of_output=True)
            _ = read._inspected
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the signature is malformed ({type(error).__name__}: {error})") from None
        if [given["tensor"] for _, given in read.tensors()] != list(range(len(read.tensors()))):
            raise ValueError("the signature is malformed (its inputs are not numbered in order)")
        return read

    @cached_property
    def _tensors(self) -> tuple[tuple[torch.dtype, tuple[int | None, ...]], ...] | None:
        """Dtype and shape of every argument, if all are tensors that can be given by position.

        Such calls are the most frequent. Checked one by one as any structure, an argument takes 5 microseconds after a
        runtime has used the CPU's caches; a small model takes 70.
        """
        given = [p.given for p in self.parameters]
        if any(p.kind in ("KEYWORD_ONLY", *_GIVEN) for p in self.parameters) or any("tensor" not in g for g in given):
            return None
        return tuple((getattr(torch, each["dtype"]), tuple(each["shape"])) for each in given)

    @cached_property
    def _inspected(self) -> inspect.Signature:
        """As Python has it; made once, because making it takes longer than a small model."""
        return inspect.Signature(
            [
                inspect.Parameter(p.name, getattr(inspect.Parameter, p.kind), default=_default(p))
                for p in self.parameters
            ]
        )

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        signature = self._inspected
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArtifactError(f"call: {error}. The artifact takes {signature}, like its target's forward.") from error
        bound.apply_defaults()
        return bound.arguments


def _fit(args: Sequence[Any], wanted: Sequence[tuple[torch.dtype, Sequence[int | None]]]) -> bool:
    """Whether arguments are tensors of these dtypes and shapes; loops, because ``all`` takes three times as long."""
    if len(args) != len(wanted):
        return False
    for value, (dtype, shape) in zip(args, wanted, strict=True):
        if not isinstance(value, Tensor) or value.dtype is not dtype or value.dim() != len(shape):
            return False
        for want, got in zip(shape, value.shape, strict=True):
            if want is not None and want != got:
                return False
    return True


def _parameter(data: Mapping[str, Any]) -> Parameter:
    """Read a parameter from untrusted builtins."""
    parameter = Parameter(**data)
    if not _is_name(parameter.name) or parameter.kind not in _KINDS:
        raise ValueError(f"the signature is malformed (a parameter {parameter.name!r} of kind {parameter.kind!r})")
    structure_json.check(parameter.given)
    kind = next(iter(parameter.given))
    if kind != _GIVEN.get(parameter.kind, kind) or not (
        parameter.default is None or structure_json.is_constant(parameter.default)
    ):
        raise ValueError(f"the signature is malformed (parameter {parameter.name!r})")
    return parameter


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and text.isidentifier() and not keyword.iskeyword(text)


def describe(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Describe one call of ``forward``: its parameters with the structures of what they were given.

    Raises:
        CaptureError: an argument cannot be recorded; the message names it.
        ConfigError: it is the forward of a TorchScript module.
    """
    bound = _inspected(forward).bind(*args, **kwargs)
    bound.apply_defaults()
    tensors: list[Tensor] = []
    return tuple(
        Parameter(
            name,
            parameter.kind.name,
            flatten(bound.arguments[name], f"argument {name}", tensors),
            _constant(parameter.default),
        )
        for name, parameter in bound.signature.parameters.items()
    )


def _constant(default: Any) -> Structure | None:
    """Structure of a parameter's default; ``None`` where it is not a constant."""
    if type(default) in CONSTANTS:
        return {"constant": default}
    return None if name_of(default) is None else {"object": default}


def without_data(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by the names of their parameters, with tensors that have no data."""
    bound = _inspected(forward).bind(*args, **kwargs)
    bound.apply_defaults()
    made: dict[str, Any] = mapped(lambda tensor: tensor.to("meta"), dict(bound.arguments))
    return made


def check_inputs(dynamic_dims: Mapping[str, Any], forward: Callable[..., Any]) -> None:
    """Check that names of inputs, such as ``"x"`` or ``"batch.ids"``, begin with parameters of a forward.

    Raises:
        ConfigError: one does not, or it is the forward of a TorchScript module.
    """
    parameters = _inspected(forward).parameters
    if any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in dynamic_dims:
        if name.partition(".")[0] not in parameters:
            raise unknown_name("dynamic_dims", name, parameters)


def _inspected(forward: Callable[..., Any]) -> inspect.Signature:
    if isinstance(forward, torch._C.ScriptMethod):
        raise ConfigError(
            "target: it is a TorchScript module (torch.jit.script, torch.jit.trace). Its graph cannot be captured, and "
            "its layers cannot be replaced. Give the nn.Module that it was made from, and script that after training, "
            "or choose another target: target='encoder' takes only that submodule."
        )
    return inspect.signature(forward)


def _default(parameter: Parameter) -> Any:
    if parameter.kind in ("VAR_POSITIONAL", "VAR_KEYWORD") or parameter.default is None:
        return inspect.Parameter.empty
    return unflatten(parameter.default, ())
