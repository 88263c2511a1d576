"""A forward's call signature and output structure as plain data, so that an artifact is called like its target.

Graphs and runtimes take and give flat lists of tensors. A :class:`Signature` says how a call's arguments become that
list and how the list of results becomes the output again. It is made of builtins only and is stored as JSON.

A *structure* is nested builtins: ``{"tensor": index, "dtype": "float32", "shape": [None, 3]}`` (``None`` is a dynamic
dimension), ``{"constant": value}``, or a kind of container with its keys, ``{"dict": [[key, structure], ...]}``; the
kinds are those of :func:`~lq_plugin.graph.nesting.parts`. Of dataclasses and named tuples the names of the fields are
stored and the class is not: nothing has to be imported to call an artifact. An output may hold ``{"int": index}`` too:
a number that follows from the sizes of the inputs, such as ``x.shape[0]``, which the graph gives as a tensor without
dimensions.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import keyword
import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lq_plugin.errors import ArtifactError, CaptureError, ConfigError, unknown_name
from lq_plugin.graph.nesting import NAMED, Record, parts

Structure = dict[str, Any]
_CONSTANTS = (type(None), bool, int, float, str)
_IN_ORDER = ("list", "tuple")  # kinds whose keys are positions
_CONTAINERS = (*_IN_ORDER, *NAMED, "dict", "ordered_dict")
_GIVEN = {"VAR_POSITIONAL": "tuple", "VAR_KEYWORD": "dict"}  # what is captured of parameters that take any number
_KINDS = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD", "VAR_POSITIONAL", "KEYWORD_ONLY", "VAR_KEYWORD")
_DEEPEST = 64  # levels of nesting; no forward takes or returns as many


@dataclass(frozen=True)
class Parameter:
    """One parameter of a forward and what it was given when the graph was captured.

    Args:
        name: the parameter's name.
        kind: the name of its ``inspect`` kind, such as ``"POSITIONAL_OR_KEYWORD"``.
        given: structure of the captured argument.
        default: structure of its default; ``None`` where there is none or where it is no plain constant.
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
    """

    parameters: tuple[Parameter, ...]
    output: Structure

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Return the tensors of a call in the graph's order.

        Raises:
            ArtifactError: the call has another structure, dtype, fixed dimension or constant than the captured one.
        """
        bound = self._bind(args, kwargs)
        tensors: list[Tensor] = []
        for parameter in self.parameters:
            _match(parameter.given, bound[parameter.name], parameter.name, tensors)
        return tensors

    def call(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments and keyword arguments of a call with these tensors; the opposite of :meth:`flatten`."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in self.parameters:
            value = rebuild(parameter.given, tensors)
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
        """Rebuild the target's output from the graph's flat results."""
        return rebuild(self.output, results)

    def tensors(self) -> list[tuple[str, Structure]]:
        """Name and structure of every input tensor, in the graph's order."""
        found: list[tuple[str, Structure]] = []
        for parameter in self.parameters:
            _collect(parameter.given, parameter.name, found)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the signature as builtins of JSON, which has no infinite numbers."""
        made: dict[str, Any] = _encoded(dataclasses.asdict(self))
        return made

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """Rebuild a signature from :meth:`to_json`.

        Raises:
            ValueError: the data is nothing that :meth:`to_json` returns.
        """
        try:
            data = _decoded(data)
            read = cls(tuple(_parameter(parameter) for parameter in data["parameters"]), data["output"])
            _check_structure(read.output, of_output=True)
            read._inspected()
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the signature is malformed ({type(error).__name__}: {error})") from None
        if [given["tensor"] for _, given in read.tensors()] != list(range(len(read.tensors()))):
            raise ValueError("the signature is malformed (its inputs are not numbered in order)")
        return read

    def _inspected(self) -> inspect.Signature:
        return inspect.Signature(
            [
                inspect.Parameter(p.name, getattr(inspect.Parameter, p.kind), default=_default(p))
                for p in self.parameters
            ]
        )

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        signature = self._inspected()
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArtifactError(f"call: {error}. The artifact takes {signature}, like its target's forward.") from error
        bound.apply_defaults()
        return bound.arguments


def _encoded(data: Any) -> Any:
    """Write constants that are no numbers of JSON as ``{"float": "inf"}``."""
    if isinstance(data, dict):
        constant = data.get("constant")
        if isinstance(constant, float) and not math.isfinite(constant):
            return {"float": str(constant)}
        return {key: _encoded(item) for key, item in data.items()}
    return [_encoded(item) for item in data] if isinstance(data, list | tuple) else data


def _decoded(data: Any) -> Any:
    if isinstance(data, dict):
        if data.get("float") in ("inf", "-inf", "nan"):
            return {"constant": float(data["float"])}
        return {key: _decoded(item) for key, item in data.items()}
    return [_decoded(item) for item in data] if isinstance(data, list) else data


def _parameter(data: Mapping[str, Any]) -> Parameter:
    """Read a parameter from builtins that anybody may have written."""
    parameter = Parameter(**data)
    if not _is_name(parameter.name) or parameter.kind not in _KINDS:
        raise ValueError(f"the signature is malformed (a parameter {parameter.name!r} of kind {parameter.kind!r})")
    _check_structure(parameter.given)
    kind = next(iter(parameter.given))
    if kind != _GIVEN.get(parameter.kind, kind) or not (parameter.default is None or _is_constant(parameter.default)):
        raise ValueError(f"the signature is malformed (parameter {parameter.name!r})")
    return parameter


def _check_structure(data: Any, depth: int = 0, of_output: bool = False) -> None:
    """Check a structure that anybody may have written.

    Raises:
        ValueError: it is none.
    """
    if isinstance(data, dict) and depth < _DEEPEST and (_is_tensor(data) or _is_constant(data)):
        return
    if isinstance(data, dict) and depth < _DEEPEST and of_output and _is_size(data):
        return
    if not isinstance(data, dict) or depth >= _DEEPEST or len(data) != 1:
        raise ValueError("the signature is malformed (it holds no structure, or one nested too deeply)")
    ((kind, content),) = data.items()
    if kind not in _CONTAINERS or not isinstance(content, list) or not all(len(pair) == 2 for pair in content):
        raise ValueError(f"the signature is malformed (no pairs of keys and structures of the kind {kind!r})")
    if not _are_keys(kind, [key for key, _ in content]):
        raise ValueError(f"the signature is malformed (a {kind} cannot have such keys)")
    for _, item in content:
        _check_structure(item, depth + 1, of_output)


def _are_keys(kind: str, keys: list[Any]) -> bool:
    if kind in _IN_ORDER:
        return all(type(key) is int for key in keys) and keys == list(range(len(keys)))
    if not all(type(key) in (str, int, bool) for key in keys) or len(set(keys)) != len(keys):
        return False
    if kind == "named_tuple":
        _named_tuple(tuple(keys))  # a ValueError for what is no name of a field
    return kind not in NAMED or all(type(key) is str for key in keys)


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and text.isidentifier() and not keyword.iskeyword(text)


def _is_constant(data: Any) -> bool:
    return isinstance(data, dict) and data.keys() == {"constant"} and type(data["constant"]) in _CONSTANTS


def _is_size(data: Structure) -> bool:
    return data.keys() == {"int"} and type(data["int"]) is int and data["int"] >= 0


def _is_tensor(data: Structure) -> bool:
    if data.keys() != {"tensor", "dtype", "shape"} or type(data["tensor"]) is not int or data["tensor"] < 0:
        return False
    sizes = data["shape"]
    return (
        isinstance(data["dtype"], str)
        and isinstance(getattr(torch, data["dtype"], None), torch.dtype)
        and isinstance(sizes, list)
        and all(size is None or (type(size) is int and size >= 0) for size in sizes)
    )


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
            structure(bound.arguments[name], f"argument {name}", tensors),
            {"constant": parameter.default} if type(parameter.default) in _CONSTANTS else None,
        )
        for name, parameter in bound.signature.parameters.items()
    )


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
            "target: it is a TorchScript module (torch.jit.script, torch.jit.trace), of which neither a graph can be "
            "captured nor a layer be replaced. Give the nn.Module that it was made from, and script that after "
            "training, or choose another target: target='encoder' takes only that submodule."
        )
    return inspect.signature(forward)


def structure(value: Any, where: str, tensors: list[Tensor]) -> Structure:
    """Describe ``value`` and append its tensors to ``tensors``.

    Args:
        value: an argument or an output.
        where: what it is called in errors; what is in it is named as in ``dynamic_dims``: ``"batch.ids"``.
        tensors: the list.

    Raises:
        CaptureError: ``value`` holds something that is neither a tensor, a plain container nor a constant.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return {
            "tensor": len(tensors) - 1,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": [size if isinstance(size, int) else None for size in value.shape],
        }
    if isinstance(value, torch.SymInt):  # of an output, while it is captured
        size: Any = value
        tensors.append(torch.scalar_tensor(size, dtype=torch.int64))
        return {"int": len(tensors) - 1}
    if type(value) in _CONSTANTS:
        return {"constant": value}
    taken = parts(value)
    if taken is None:
        raise CaptureError(
            f"{where}: a {type(value).__name__} cannot cross the border of a graph. Allowed: tensors, None, bool, int, "
            "float, str, and list, tuple, dict, named tuple or dataclass of them. Choose as target a submodule whose "
            "forward takes and returns such values."
        )
    kind, items = taken
    if not all(type(key) in (str, int, bool) for key, _ in items):
        raise CaptureError(f"{where}: the keys of a dict must be str, int or bool, got {[key for key, _ in items]!r}.")
    return {kind: [[key, structure(item, f"{where}.{key}", tensors)] for key, item in items]}


def rebuild(structure: Structure, tensors: Sequence[Any]) -> Any:
    """Build the value that a structure describes, with ``tensors`` in their places."""
    ((kind, content), *_) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "int":
        return int(tensors[content])
    if kind == "constant":
        return content
    items = {key: rebuild(item, tensors) for key, item in content}
    if kind in _IN_ORDER:
        return list(items.values()) if kind == "list" else tuple(items.values())
    if kind == "named_tuple":
        return _named_tuple(tuple(items))(**items)
    if kind == "record":
        return Record(items)
    return items if kind == "dict" else OrderedDict(items)


@functools.cache
def _named_tuple(names: tuple[str, ...]) -> Any:
    factory: Any = namedtuple
    made = factory("Output", names)
    made.__reduce__ = lambda self: (_filled, (names, tuple(self)))  # or pickle would look for a class of this name
    return made


def _filled(names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    return _named_tuple(names)(*values)


def _default(parameter: Parameter) -> Any:
    if parameter.kind in ("VAR_POSITIONAL", "VAR_KEYWORD") or parameter.default is None:
        return inspect.Parameter.empty
    return parameter.default["constant"]


def _match(structure: Structure, value: Any, where: str, tensors: list[Tensor]) -> None:
    ((kind, content), *_) = structure.items()
    if kind == "tensor":
        tensors.append(_checked_tensor(structure, value, where))
    elif kind == "constant":
        if type(value) is not type(content) or value != content:
            raise ArtifactError(
                f"argument {where}: given {value!r}, but the graph was captured with the constant {content!r}, "
                "which is fixed in it. Capture again with the other value to get an artifact for it."
            )
    elif kind in _IN_ORDER:
        if not isinstance(value, list | tuple) or len(value) != len(content):
            got = f"{len(value)} items" if isinstance(value, list | tuple) else type(value).__name__
            raise ArtifactError(f"argument {where}: expected a {kind} of {len(content)} items, got {got}.")
        for (index, item), element in zip(content, value, strict=True):
            _match(item, element, f"{where}.{index}", tensors)
    else:
        keys = [key for key, _ in content]
        taken = parts(value)
        items = dict(taken[1]) if taken is not None and taken[0] not in _IN_ORDER else None
        if items is None or set(items) != set(keys):
            got = type(value).__name__ if items is None else str(sorted(map(str, items)))
            holder = f"{kind.replace('_', ' ')} with the fields" if kind in NAMED else "dict with the keys"
            raise ArtifactError(f"argument {where}: expected a {holder} {keys}, got {got}.")
        for key, item in content:
            _match(item, items[key], f"{where}.{key}", tensors)


def _checked_tensor(structure: Structure, value: Any, where: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ArtifactError(f"argument {where}: expected a tensor, got {type(value).__name__}.")
    shape, dtype = structure["shape"], structure["dtype"]
    fits = len(shape) == value.dim() and all(want in (None, got) for want, got in zip(shape, value.shape, strict=True))
    if not fits or str(value.dtype) != f"torch.{dtype}":
        wanted = ["any" if size is None else size for size in shape]
        raise ArtifactError(
            f"argument {where}: expected {dtype} of shape {wanted}, got {str(value.dtype).removeprefix('torch.')} of "
            f"shape {list(value.shape)}. Dimensions become free with dynamic_dims when the target is captured."
        )
    return value


def _collect(structure: Structure, name: str, found: list[tuple[str, Structure]]) -> None:
    ((kind, content), *_) = structure.items()
    if kind == "tensor":
        found.append((name, structure))
    elif kind != "constant":
        for key, item in content:
            _collect(item, f"{name}.{key}", found)
