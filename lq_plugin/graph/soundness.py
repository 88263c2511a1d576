"""Warnings of what makes the figures of an INT8 model meaningless although nothing fails."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lq_plugin.graph import nesting
from lq_plugin.graph.calibration import Calibration
from lq_plugin.graph.capture import Call
from lq_plugin.graph.copying import cpu_copy
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import module_path
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.observers import Observer, Range
from lq_plugin.qparams import QuantSpec
from lq_plugin.scheme import Scheme

WIDEST = 1e30  # float32 ends at 3.4e38, and the square of this is beyond it
_STEPS = QuantSpec().steps
_SHOWN = 5
_TOLERANCE = 1e-4  # of the largest value: kernels that sum in another order each time are below it

logger = logging.getLogger("lq_plugin")


def warn_of_ranges(name: str, graph: Graph, calibration: Calibration, scheme: Scheme) -> None:
    """Name the values of a candidate that INT8 cannot represent with the ranges that were observed.

    Args:
        name: of the candidate.
        graph: its folded graph.
        calibration: statistics of the graph's values.
        scheme: whose observer made them.
    """
    assert isinstance(scheme.observer, Observer)
    paths = {node.name: module_path(node) for node in graph.module.graph.nodes}
    found = {
        f"{paths.get(value) or 'inputs'}.{value}": reason
        for value, statistic in calibration.statistics.items()
        if (reason := _degenerate(scheme.observer.extremes(statistic))) is not None
    }
    if found:
        shown = "; ".join(f"{value} {reason}" for value, reason in list(found.items())[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        logger.warning(
            "calibration of %r found values that INT8 cannot represent: %s%s. Check the validation data and the model, "
            "or leave the operators around them float with skip.",
            name,
            shown,
            more,
        )


def warn_of_random_forward(name: str, target: nn.Module, example: Call) -> None:
    """Warn where two calls of a module in eval mode give different outputs, because every figure varies then.

    Args:
        name: of the candidate.
        target: copied for each call, so that a forward that remembers something is not taken for a random one.
        example: arguments and keyword arguments of one call, on the CPU.
    """
    outputs: list[list[Tensor]] = []
    with isolated(), _random_state_kept(), suppress(Exception):  # a module that cannot be called is reported elsewhere
        outputs = [_called(target, example) for _ in range(2)]
    if any(_differ(*pair) for pair in zip(*outputs, strict=False)):
        logger.warning(
            "candidate %r: the forward of %s is random in eval mode: two calls with the same inputs gave different "
            "outputs. Ranges, metrics and sqnr_db vary from run to run, and an artifact may not be random at all. Draw "
            "random numbers only in training (if self.training: …), or take them as an input.",
            name,
            type(target).__name__,
        )


def _degenerate(extremes: Range) -> str | None:
    low, high = extremes
    if not max(high, 0.0) - min(low, 0.0) <= WIDEST:
        return f"spans {low:.3g} to {high:.3g}, so everything below {WIDEST / _STEPS:.0e} becomes 0"
    if max(abs(low), abs(high)) < 1 / WIDEST:  # a histogram's narrowest bin is wider than 0
        return "was 0, nan or infinite in every batch"
    if high - low < (max(high, 0.0) - min(low, 0.0)) / _STEPS:
        return f"was constant ({high:.3g}) in every batch"
    return None


def _called(target: nn.Module, example: Call) -> list[Tensor]:
    args, kwargs = nesting.mapped(torch.clone, example)
    return list(nesting.tensors(cpu_copy(target)(*args, **kwargs)))


def _differ(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.dtype.is_floating_point:
        return not torch.equal(one, other)
    scale = one[one.isfinite()].abs().amax().item() if one.isfinite().any() else 0.0
    return not torch.allclose(one, other, rtol=0, atol=_TOLERANCE * scale, equal_nan=True)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """What :func:`isolated` does for torch, for the generators of Python and numpy."""
    states: Mapping[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state()}
    try:
        yield
    finally:
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
