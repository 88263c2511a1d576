"""Structures and JSON, which has no infinite numbers: written, and checked when they are read.

A file may hold anything, so the valid forms of a structure are listed, and everything else is refused.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lq_plugin.graph.nesting import NAMED
from lq_plugin.graph.structure import CONSTANTS, IN_ORDER, LONGEST_NAME, Named, Structure, name_of, named_tuple_of

_CONTAINERS = (*IN_ORDER, *NAMED, "dict", "ordered_dict")
_DEEPEST = 64  # levels of nesting; no forward takes or returns as many


def encoded(data: Any) -> Any:
    """Write constants that JSON has no number for as ``{"float": "inf"}``, and of other objects the name."""
    if isinstance(data, dict):
        if data.keys() == {"object"}:
            return {"object": name_of(data["object"])}
        constant = data.get("constant")
        if isinstance(constant, float) and not math.isfinite(constant):
            return {"float": str(constant)}
        return {key: encoded(item) for key, item in data.items()}
    return [encoded(item) for item in data] if isinstance(data, list | tuple) else data


def decoded(data: Any) -> Any:
    """Read what :func:`encoded` has written."""
    if isinstance(data, dict):
        if data.get("float") in ("inf", "-inf", "nan"):
            return {"constant": float(data["float"])}
        if data.keys() == {"object"} and isinstance(data["object"], str):
            return {"object": Named(data["object"])}
        return {key: decoded(item) for key, item in data.items()}
    return [decoded(item) for item in data] if isinstance(data, list) else data


def check(data: Any, depth: int = 0, of_output: bool = False) -> None:
    """Check an untrusted structure.

    Raises:
        ValueError: it is not a structure.
    """
    if not isinstance(data, dict) or depth >= _DEEPEST:
        raise ValueError("the signature is malformed (it has no structure, or one that is nested too deeply)")
    if _is_tensor(data) or is_constant(data) or (of_output and (_is_size(data) or _is_dropped(data))):
        return
    if len(data) != 1:
        raise ValueError("the signature is malformed (it has no structure)")
    ((kind, content),) = data.items()
    if kind not in _CONTAINERS or not isinstance(content, list) or not all(len(pair) == 2 for pair in content):
        raise ValueError(f"the signature is malformed (no pairs of keys and structures of the kind {kind!r})")
    if not _are_keys(kind, [key for key, _ in content]):
        raise ValueError(f"the signature is malformed (a {kind} cannot have such keys)")
    for _, item in content:
        check(item, depth + 1, of_output)


def _are_keys(kind: str, keys: list[Any]) -> bool:
    if kind in IN_ORDER:
        return all(type(key) is int for key in keys) and keys == list(range(len(keys)))
    if not all(type(key) in (str, int, bool) for key in keys) or len(set(keys)) != len(keys):
        return False
    if kind == "named_tuple":
        named_tuple_of(tuple(keys))  # a ValueError for what cannot be the name of a field
    return kind not in NAMED or all(type(key) is str for key in keys)


def is_constant(data: Any) -> bool:
    """Return whether data is the structure of a constant."""
    if not isinstance(data, dict):
        return False
    if data.keys() == {"object"}:
        return isinstance(data["object"], Named) and _is_name(data["object"].name)
    return data.keys() == {"constant"} and type(data["constant"]) in CONSTANTS


def _is_dropped(data: Structure) -> bool:
    return data.keys() == {"dropped"} and _is_name(data["dropped"])


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= LONGEST_NAME and text.isprintable()


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
