"""Which operators of an artifact compute on integers, why the others do not, and which kernels really run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lq_plugin.report.manifest import Entry, Manifest

MOST = 400  # operators on a page, of all candidates together
NAMED = 12  # kernels of one type that are named

State = Literal["INT8", "float", "–"]


@dataclass(frozen=True)
class Operator:
    """One operator of a candidate.

    Args:
        name: its module and its node.
        op: its type.
        states: ``INT8`` or ``float`` for each artifact of the candidate; a dash where an artifact has it not.
        reason: why it is float, by artifact where they differ.
        share: its share of the error that INT8 causes; ``None`` where that is not known.
    """

    name: str
    op: str
    states: tuple[State, ...]
    reason: str
    share: float | None

    @property
    def state(self) -> str:
        """What to filter by: the one state of all artifacts, or ``mixed``."""
        states = set(self.states) - {"–"}
        return states.pop() if len(states) == 1 else "mixed"


@dataclass(frozen=True)
class OperatorTable:
    """The operators of one candidate.

    Args:
        candidate: its name.
        formats: its artifacts, by format.
        operators: in the order of their names.
        total: how many there are; not all may be listed.
    """

    candidate: str
    formats: tuple[str, ...]
    operators: tuple[Operator, ...]
    total: int


@dataclass(frozen=True)
class KernelRow:
    """The kernels of one type in an artifact.

    Args:
        label: of the artifact.
        runtime: that runs them.
        int8: whether they compute on integers.
        type: as the runtime names it.
        count: how many there are.
        names: the first of them.
    """

    label: str
    runtime: str
    int8: bool
    type: str
    count: int
    names: str


def operator_tables(manifest: Manifest) -> list[OperatorTable]:
    """Return the operators of every candidate of which an artifact was made."""
    made: dict[str, list[Entry]] = {}
    for entry in manifest.artifacts:
        if entry.quantized_ops or entry.float_ops:
            made.setdefault(entry.candidate, []).append(entry)
    most = MOST // max(len(made), 1)
    return [_table(name, entries, manifest, most) for name, entries in made.items()]


def _table(candidate: str, entries: Sequence[Entry], manifest: Manifest, most: int) -> OperatorTable:
    shares = {each.name: each.share for each in manifest.sensitivity.get(candidate, ())}
    kinds = {op.name: op.op for entry in entries for op in entry.quantized_ops}
    kinds |= {op.name: op.op for entry in entries for op in entry.float_ops}
    integer = [{op.name for op in entry.quantized_ops} for entry in entries]
    reasons = [{op.name: op.reason for op in entry.float_ops} for entry in entries]
    formats = tuple(entry.format for entry in entries)
    operators = [
        Operator(
            name,
            kinds[name],
            tuple(_state(name, own, why) for own, why in zip(integer, reasons, strict=True)),
            _reason(formats, [why.get(name) for why in reasons]),
            shares.get(name),
        )
        for name in sorted(kinds, key=_natural)[:most]
    ]
    return OperatorTable(candidate, formats, tuple(operators), len(kinds))


def _state(name: str, integer: set[str], reasons: dict[str, str]) -> State:
    return "INT8" if name in integer else "float" if name in reasons else "–"


def _reason(formats: Sequence[str], reasons: Sequence[str | None]) -> str:
    by: dict[str, list[str]] = {}
    for name, reason in zip(formats, reasons, strict=True):
        if reason is not None:
            by.setdefault(reason, []).append(name)
    if len(by) == 1 and None not in reasons:
        return next(iter(by))
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by.items())


def _natural(name: str) -> list[tuple[int, int, str]]:
    """``net.2`` before ``net.10``."""
    return [
        (0, int(part), "") if part.isdecimal() and len(part) < 19 else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def kernels(manifest: Manifest) -> list[KernelRow]:
    """Return the kernels that run, for every artifact of which the runtime tells them."""
    return [row for entry in manifest.artifacts for row in _kernels(entry)]


def _kernels(entry: Entry) -> Iterator[KernelRow]:
    if entry.kernels is None:
        return
    for int8, types in ((True, entry.kernels.int8), (False, entry.kernels.float)):
        for kind, names in types.items():
            rest = len(names) - NAMED
            listed = ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
            yield KernelRow(entry.label, entry.runtime, int8, kind, len(names), listed)


def fallen_back(manifest: Manifest) -> list[str]:
    """Return which operators were placed in INT8 but run in float, a sentence for each artifact."""
    return [
        f"{entry.label} on {entry.runtime} runs in float, although placed in INT8: "
        + ", ".join(f"{count} {kind}" for kind, count in entry.kernels.fell_back.items())
        for entry in manifest.artifacts
        if entry.kernels and entry.kernels.fell_back
    ]
