"""The expressions of dynamic sizes that a ``.pt2`` may hold.

torch hands them to ``sympy.sympify``, which evaluates them as Python and then does algebra. Export writes only calls,
such as ``Mul(Integer(4), Symbol('s13', positive=True, integer=True))``. Numbers are short, powers are of small constant
exponents (attention of dynamic length has strides of ``s13`` squared), and an expression that is multiplied out has a
bounded number of terms: with others, such as ``9**9**9**9``, the algebra does not end.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from math import prod

_LONGEST = 8_000  # characters; two sizes multiplied, each behind five strided convolutions, take 1,000
_LARGEST = 1 << 63
_MOST_TERMS = 256
_HIGHEST = 8  # degree
_POWERS = {"Pow", "PowByNatural"}

Measure = tuple[int, int]  # terms and degree of what is left when an expression is multiplied out


def is_symbol(text: str) -> bool:
    """Return whether a string is the name of a size, such as ``s13``."""
    return re.fullmatch(r"[a-z]{1,4}\d{1,4}", text) is not None


def is_expression(text: str) -> bool:
    """Return whether a string is an expression that export writes and that is evaluated quickly."""
    if len(text) > _LONGEST:
        return False
    try:
        _measured(ast.parse(text, mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def _measured(node: ast.expr) -> Measure:
    """Return an expression's measure.

    Raises:
        ValueError: it is not such an expression, or too large.
    """
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return 1, 0
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("neither a call nor a truth value")
    name = node.func.id
    if name in _ATOMS:
        return _ATOMS[name](node)
    if name not in _POWERS | _FUNCTIONS.keys() or node.keywords or not node.args:
        raise ValueError(f"{name} is not allowed")
    if name in _POWERS:
        base, exponent = node.args
        (terms, degree), power = _measured(base), _integer(exponent)
        if not degree or not 0 <= power <= _HIGHEST:
            raise ValueError("a power of a number, or too high")
        return _bounded(terms**power, degree * power)
    return _bounded(*_FUNCTIONS[name]([_measured(argument) for argument in node.args]))


def _bounded(terms: int, degree: int) -> Measure:
    if terms > _MOST_TERMS or degree > _HIGHEST:
        raise ValueError("too large when multiplied out")
    return terms, degree


def _sum(summands: list[Measure]) -> Measure:
    return sum(terms for terms, _ in summands), max(degree for _, degree in summands)


def _product(factors: list[Measure]) -> Measure:
    return prod(terms for terms, _ in factors), sum(degree for _, degree in factors)


def _closed(arguments: list[Measure]) -> Measure:
    """A function that is not multiplied out; sympy compares each of its arguments with each other."""
    if len(arguments) > 8:
        raise ValueError("too many arguments")
    return 1, 1


_FUNCTIONS: Mapping[str, Callable[[list[Measure]], Measure]] = {
    "Add": _sum,
    "Mul": _product,
    **dict.fromkeys(
        (
            "And CeilDiv CeilToInt CleanDiv Equality FloatTrueDiv FloorDiv FloorToInt GreaterThan Identity IntTrueDiv "
            "LessThan Max Min Mod ModularIndexing Not Or PythonMod RoundToInt StrictGreaterThan StrictLessThan ToFloat "
            "TruncToFloat TruncToInt Unequality Where"
        ).split(),
        _closed,
    ),
}


def _symbol(call: ast.Call) -> Measure:
    """``Symbol('s13', positive=True, integer=True)``."""
    assumptions = [keyword.value.value for keyword in call.keywords if isinstance(keyword.value, ast.Constant)]
    if not is_symbol(_text(call)) or [type(value) for value in assumptions] != [bool] * len(call.keywords):
        raise ValueError("no symbol")
    return 1, 1


def _number(call: ast.Call) -> Measure:
    """``Integer(4)`` and ``Rational(1, 2)``."""
    if call.keywords or len(call.args) != (1 if _name(call) == "Integer" else 2):
        raise ValueError("no number")
    for argument in call.args:
        _literal(argument)
    return 1, 0


def _float(call: ast.Call) -> Measure:
    """``Float('1.5', precision=53)``."""
    precision = [keyword.value.value for keyword in call.keywords if isinstance(keyword.value, ast.Constant)]
    if not re.fullmatch(r"-?\d{1,25}(\.\d{1,25})?(e[-+]?\d{1,2})?", _text(call)) or precision != [53]:
        raise ValueError("no number")
    return 1, 0


_ATOMS: Mapping[str, Callable[[ast.Call], Measure]] = {
    "Symbol": _symbol,
    "Integer": _number,
    "Rational": _number,
    "Float": _float,
}


def _name(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Name)
    return call.func.id


def _text(call: ast.Call) -> str:
    if len(call.args) != 1 or not isinstance(call.args[0], ast.Constant) or not isinstance(call.args[0].value, str):
        raise ValueError("not one string")
    return call.args[0].value


def _integer(node: ast.expr) -> int:
    """The number in ``Integer(4)``."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "Integer":
        raise ValueError("no integer")
    _number(node)
    return _literal(node.args[0])


def _literal(node: ast.expr) -> int:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node, sign = node.operand, -1
    if not isinstance(node, ast.Constant) or type(node.value) is not int or node.value >= _LARGEST:
        raise ValueError("no short integer")
    return sign * node.value
