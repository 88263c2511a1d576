"""Which kernels a runtime chose for an artifact: a graph with integers in it may still be computed on floats.

A runtime looks for patterns of quantize/dequantize pairs and says nothing where one does not match. A U-Net of which
every operator was placed in INT8 ran all of its convolutions in float on OpenVINO, 3.8 times as long as on integers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lq_plugin.artifacts.base import FORMATS
from lq_plugin.coverage import FloatOp, Kernel, QuantizedOp
from lq_plugin.report.manifest import Entry, Kernels

logger = logging.getLogger("lq_plugin")


def counted(entry: Entry, folder: Path) -> Entry:
    """Return an artifact's entry with its kernels on this CPU; operators that fall back to float are listed as float.

    Args:
        entry: its format, and which operators were placed in INT8.
        folder: the artifact.

    Returns:
        The entry itself for the formats ``pt2`` and ``torch``, which have no optimized graph to read. The same if the
        graph cannot be read, which is logged: the artifact works without it.
    """
    listed = FORMATS[entry.format].kernels
    if listed is None:
        return entry
    try:
        kernels = listed(folder)
    except Exception as error:
        logger.warning("%s: its kernels are not known (%s: %s)", entry.label, type(error).__name__, error)
        return entry
    floats = {node for kernel in kernels if not kernel.int8 for node in kernel.nodes}  # an LSTM is several kernels
    fallen = [op for op in entry.quantized_ops if _node(op) in floats]
    reason = f"runs in float on {entry.runtime}, which chose no INT8 kernel for it"
    return replace(
        entry,
        quantized_ops=tuple(op for op in entry.quantized_ops if op not in fallen),
        float_ops=(*(FloatOp(op.name, op.op, reason) for op in fallen), *entry.float_ops),
        kernels=Kernels(_names(kernels, int8=True), _names(kernels, int8=False), _unnamed(entry, kernels)),
    )


def _node(op: QuantizedOp | FloatOp) -> str:
    """Name of an operator's node in the graph, without its module."""
    return op.name.rpartition(".")[2]


def _names(kernels: Sequence[Kernel], int8: bool) -> dict[str, tuple[str, ...]]:
    """Names of the kernels on integers, or of those on floats, by type."""
    chosen = [kernel for kernel in kernels if kernel.int8 is int8]
    types = sorted({kernel.type for kernel in chosen})
    return {kind: tuple(kernel.name for kernel in chosen if kernel.type == kind) for kind in types}


def _unnamed(entry: Entry, kernels: Sequence[Kernel]) -> dict[str, int]:
    """How many operators placed in INT8 run in float, by type, among those whose kernel is not known by name.

    Runtimes rename and fuse nodes, so operators and kernels are counted. Operators without an INT8 kernel count if
    there are float kernels besides those of the operators that stay float. The count may miss one, and is seldom too
    high.
    """
    operators = {*map(_node, entry.quantized_ops), *map(_node, entry.float_ops)}
    known = operators & {node for kernel in kernels for node in kernel.nodes}
    found: dict[str, int] = {}
    for types in dict.fromkeys(kernel.operators for kernel in kernels):
        placed = [op.op for op in entry.quantized_ops if op.op in types and _node(op) not in known]
        left = [op.op for op in entry.float_ops if op.op in types and _node(op) not in known]
        alike = [kernel.int8 for kernel in kernels if kernel.operators == types and not kernel.nodes & known]
        fallen = min(len(placed) - alike.count(True), alike.count(False) - len(left))
        if fallen > 0:
            found["/".join(sorted(set(placed)))] = fallen
    return found
