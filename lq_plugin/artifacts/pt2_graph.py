"""What a serialized graph of a ``.pt2`` may say: which operators, names, tree structures and sizes.

While it loads a graph, torch evaluates the expressions of dynamic dimensions as Python, imports the classes and modules
that a treespec names, puts names into the source code of the graph's forward, and looks operators up as attributes of
its modules. So what each string may be is listed by the key that it stands under, and a string under another key is
refused, as is a kind of argument that is not listed. Every rule was read off torch 2.13 (``torch/_export/serde`` and
``torch/utils/_pytree.py``).

A refusal is a ``ValueError`` that says in half a sentence what was found.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload

from lq_plugin.artifacts.pt2_sizes import is_expression, is_symbol
from lq_plugin.graph.recurrent import OPERATORS
from lq_plugin.untrusted import parse_json

# Shapes of a graph are computed by Python's own operators; what can make a number of any length is left out.
_PYTHON = "add and_ eq floordiv ge gt le lt mod mul ne neg or_ pos rshift sub truediv".split()
_SYMBOLIC = "float int ite max min not sqrt sum".split()
_BY_NAME = frozenset(
    {
        "torch.ops.higher_order.cond",
        *(f"torch.ops.lq_plugin.{kind}.default" for kind in OPERATORS),
        *(f"_operator.{name}" for name in _PYTHON),
        *(f"torch.sym_{name}" for name in _SYMBOLIC),
        *(f"math.{name}" for name in ("ceil", "floor", "trunc")),
        "torch.ops.aten._assert_scalar.default",  # these three check sizes, and take no tensor
        "torch.ops.aten.sym_constrain_range.default",
        "torch.ops.aten.sym_constrain_range_for_size.default",
    }
)
_POWER, _LARGEST_POWER = "_operator.pow", 4
_ARGUMENTS = frozenset(
    f"as_{kind}"
    for kind in (
        "bool bools complex device expr float floats float_lists graph int ints int_lists layout memory_format name "
        "nested_tensors none optional_tensor optional_tensors scalar_type string strings sym_bool sym_bools sym_float "
        "sym_floats sym_int sym_ints tensor tensors"
    ).split()
)
_TREES = {"builtins.tuple": False, "builtins.list": False, "builtins.dict": True, "collections.OrderedDict": True}


def check(program: Mapping[str, Any]) -> None:
    """Check a serialized program.

    Raises:
        ValueError: it holds something that is not listed here.
    """
    for symbol in program["range_constraints"]:
        if not is_symbol(symbol):  # torch counts up to the number in it
            raise ValueError(f"has {symbol!r} as range_constraints")
    _check(program, "")


def _check(content: Any, key: str) -> None:
    """Check what stands under a key, and all that is in it."""
    if isinstance(content, str):
        if key not in _STRINGS or not _STRINGS[key](content):
            raise ValueError(f"has {content[:200]!r} as {key}")
    elif isinstance(content, list):
        for item in content:
            _check(item, key)
    elif isinstance(content, dict):
        if content.get("target") == _POWER:
            _check_power(content)
        for name, item in content.items():
            if name.startswith("as_") and name not in _ARGUMENTS:
                raise ValueError(f"has an argument of the kind {name}")
            _check(item, name)


def _check_power(node: Mapping[str, Any]) -> None:
    exponent = node["inputs"][1]["arg"].get("as_int")
    if type(exponent) is not int or not 0 <= exponent <= _LARGEST_POWER:
        raise ValueError(f"raises a size to a power other than 0 to {_LARGEST_POWER}")


@functools.cache
def is_operator(target: str) -> bool:
    """Return whether an operator may be in a graph: it computes, and neither changes its arguments nor reads files."""
    if target in _BY_NAME or target == _POWER:
        return True
    found = re.fullmatch(r"torch\.ops\.(aten|quantized_decomposed)\.([a-zA-Z0-9_]+)\.([a-zA-Z0-9_]+)", target)
    operator: Any = torch.ops
    for name in found.groups() if found else ():
        operator = getattr(operator, name, None)
    if not isinstance(operator, OpOverload):
        return False
    schema = operator._schema
    values = [*schema.arguments, *schema.returns]
    # Operators without tensors are those of TorchScript: they save files, print, set the seed.
    return (
        not schema.is_mutable
        and not any("file" in value.name for value in schema.arguments)
        and any("Tensor" in str(value.type) for value in values)
    )


def _is_tree(text: str) -> bool:
    """Return whether a treespec is made of plain containers, whose keys are only names of values."""
    version, root = parse_json(text.encode())
    return version == 1 and _is_node(root)


def _is_node(node: Any) -> bool:
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if kind is None:
        return context is None and children == []
    if kind not in _TREES or not all(map(_is_node, children)):
        return False
    keys = parse_json(context.encode())
    if not _TREES[kind]:
        return keys is None
    return len(keys) == len(children) and all(type(key) is int or _is_name(key) for key in keys)


def _is_name(text: Any) -> bool:
    """Return whether a string is a plain name: names become part of the source code that torch runs."""
    return isinstance(text, str) and re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_]*)?", text) is not None


def _is_attribute(text: str) -> bool:
    """Return whether a string is a path such as ``layers.0.weight``, safe between quotes in source code."""
    return re.fullmatch(r"""[^"'\\\x00-\x1f\x7f-\x9f\u2028\u2029]*""", text) is not None and not re.search(
        r"(^|\.)__", text
    )


def _of(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


_is_float, _is_anything = _of("-?Infinity|NaN"), _of(r"(?s:.*)")
_STRINGS: Mapping[str, Callable[[str], bool]] = {  # by the key in a serialized graph
    "target": is_operator,
    "expr_str": is_expression,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    "name": _is_name,
    "as_name": _is_name,
    "forward_arg_names": _is_name,
    "parameter_name": _is_attribute,
    "buffer_name": _is_attribute,
    "tensor_constant_name": _is_attribute,
    "fqn": _is_attribute,
    "as_float": _is_float,
    "as_floats": _is_float,
    "type": _of("[a-z]+"),  # of a device
    "verifiers": _of("[A-Z]+"),
    "as_string": _is_anything,  # an argument such as "same", or what an assertion says; quoted in source code
    "as_strings": _is_anything,
    "torch_version": _is_anything,  # nothing reads these two
    "guards_code": _is_anything,
}
