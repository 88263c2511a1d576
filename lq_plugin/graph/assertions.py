"""Checks of data in a forward: ``assert x.isfinite().all()``, ``if (x < 0).any(): raise …``. No runtime has these.

They are left out of the graph: where the truth of a tensor decides only whether an error is raised, it is answered so
that none is. The bytecode at the place that asks tells such a check from a branch.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn

from lq_plugin.graph.replacing import replaced_method

_OF_TORCH = str(Path(torch.__file__).parent)  # its own checks of numbers are of shapes, and are answered as ever
_REAL = (Tensor, nn.Parameter)  # while a forward is captured, everything else has no values


_ENDS = ("RETURN", "RERAISE", "YIELD", "FOR_ITER", "SEND")
_aten = torch.ops.aten
_CHECKS = {
    _aten._assert_scalar.default,
    _aten._assert_async.default,
    _aten._assert_async.msg,
    _aten.sym_constrain_range.default,
    _aten.sym_constrain_range_for_size.default,
}  # what torch.export itself adds where a number comes from data


def remove_checks(module: fx.GraphModule) -> None:
    """Remove operators that only check numbers from a graph, and what is computed for them alone."""
    checks = [node for node in module.graph.nodes if node.target in _CHECKS]
    for node in checks:
        module.graph.erase_node(node)
    if checks:
        module.graph.eliminate_dead_code()
        module.recompile()


@contextmanager
def checks_left_out(left_out: Callable[[str], object]) -> Iterator[None]:
    """Answer checks of data so that they raise nothing, while a forward is captured.

    Args:
        left_out: called with the place of each, a file and a line.
    """
    truth_of_tensor: Callable[[Tensor], bool] = Tensor.__bool__
    truth_of_number: Callable[[Any], bool] = torch.SymBool.__bool__

    def of_tensor(self: Tensor) -> bool:
        passing = None if type(self) in _REAL else _passing(sys._getframe(1), left_out)
        return truth_of_tensor(self) if passing is None else passing

    def of_number(self: Any) -> bool:
        frame = sys._getframe(1)
        known = self.node.has_hint() or frame.f_code.co_filename.startswith(_OF_TORCH)
        passing = None if known else _passing(frame, left_out)
        return truth_of_number(self) if passing is None else passing

    with replaced_method(Tensor, "__bool__", of_tensor), replaced_method(torch.SymBool, "__bool__", of_number):
        yield


def _passing(frame: Any, left_out: Callable[[str], object]) -> bool | None:
    """The truth value for which the code that asks does not raise; ``None`` where it is not a check."""
    code: CodeType = frame.f_code
    found = passing_value(code, frame.f_lasti)
    if found is not None:
        left_out(f"{code.co_filename}:{frame.f_lineno}")
    return found


@functools.cache
def passing_value(code: CodeType, asking: int) -> bool | None:
    """Find the truth value for which a piece of code does not raise.

    Args:
        code: a function's.
        asking: offset of the instruction that asks whether something is true, or that calls what asks.

    Returns:
        ``None`` where both values, or neither, lead straight to a ``raise``.
    """
    instructions = list(dis.get_instructions(code))
    places = {instruction.offset: number for number, instruction in enumerate(instructions)}
    number = places.get(asking)
    if number is None:
        return None
    if "JUMP" not in instructions[number].opname:  # a call, or an instruction of its own for the truth value
        number += 1
    jump = instructions[number]
    if not jump.opname.startswith("POP_JUMP") or not jump.opname.endswith(("IF_TRUE", "IF_FALSE")):
        return None
    entries: Any = dis.Bytecode(code)
    caught = [(entry.start, entry.end) for entry in entries.exception_entries]
    goes_on, jumps = (_raises(instructions[place:], caught) for place in (number + 1, places[jump.argval]))
    jumps_if = jump.opname.endswith("IF_TRUE")
    return None if goes_on == jumps else jumps_if if goes_on else not jumps_if


def _raises(instructions: list[dis.Instruction], caught: list[tuple[int, int]]) -> bool:
    """Whether instructions lead to a ``raise`` without a branch or a return, and out of the function.

    A ``raise`` inside ``try`` or ``with`` may be caught, which makes a branch of it. That a caller catches it is not
    seen.
    """
    for instruction in instructions:
        if instruction.opname == "RAISE_VARARGS":
            return not any(start <= instruction.offset < end for start, end in caught)
        if "JUMP" in instruction.opname or instruction.opname.startswith(_ENDS):
            return False
    return False
