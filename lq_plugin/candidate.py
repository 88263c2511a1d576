"""A model ready to be exported: the float graph, its calibration and a scheme. The functional twins live here."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lq_plugin.errors import CalibrationError
from lq_plugin.graph.calibration import Calibration, Provenance, Recording, calls
from lq_plugin.graph.capture import FloatGraph, capture, duplicate, fold
from lq_plugin.graph.convert import convert
from lq_plugin.graph.placement import Placement, place
from lq_plugin.scheme import Scheme


@dataclass(frozen=True)
class Candidate:
    """Everything that artifacts are made from.

    Args:
        name: names the candidate's folder and its rows in the manifest.
        graph: the folded float graph on its own copy of the weights, on the CPU.
        calibration: statistics of the graph's values.
        scheme: what is quantized and how.
    """

    name: str
    graph: FloatGraph
    calibration: Calibration
    scheme: Scheme

    def placed(self, runtime: str) -> Placement:
        """Return where quantize/dequantize pairs go for a runtime."""
        return place(self.graph, self.scheme, runtime)

    def converted(self, runtime: str) -> FloatGraph:
        """Return the graph with explicit quantize/dequantize pairs where a runtime is fastest with them."""
        assert not isinstance(self.scheme.observer, str)
        ranges = self.calibration.ranges(self.scheme.observer)
        placement = self.placed(runtime)
        missing = sorted(set(placement.scales.values()) - set(ranges))
        if missing:
            raise CalibrationError(
                f"calibration: it has no statistics for {missing[:3]} of the graph. It was gathered from another model "
                "or with other skip and only patterns; calibrate again."
            )
        return convert(self.graph, placement, ranges, self.scheme)


def calibrate(model: nn.Module, batches: Iterable[Any], scheme: Scheme | str = "static") -> Calibration:
    """Run batches through a model's graph and gather the statistics for static quantization.

    Args:
        model: any module; it is neither changed nor switched to another mode.
        batches: forward inputs, each a tensor, a tuple (args) or a dict (kwargs). Write a single dict argument as
            ``({...},)``.
        scheme: which values are observed, and by which observer.

    Raises:
        CalibrationError: there is no batch.
        CaptureError: the model's forward cannot be captured.
        ConfigError: the scheme does not fit the model.
    """
    return _calibrated(model, batches, _scheme(scheme), None)[1]


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    scheme: Scheme | str = "static",
    *,
    name: str | None = None,
    dynamic_dims: Mapping[str, Sequence[int]] | None = None,
) -> Candidate:
    """Make a candidate from a trained model: capture, calibrate, and keep what artifacts are made from.

    Args:
        model: any module; it is neither changed nor switched to another mode.
        batches: forward inputs, each a tensor, a tuple (args) or a dict (kwargs). Write a single dict argument as
            ``({...},)``. The first one is the example for capture.
        scheme: a method's name, or a :class:`Scheme`.
        name: the candidate's name; the method's by default.
        dynamic_dims: dynamic dimensions besides the batch, by input name: ``{"x": [2, 3]}``.

    Raises:
        CalibrationError: there is no batch.
        CaptureError: the model's forward cannot be captured.
        ConfigError: the scheme does not fit the model.

    Example:
        >>> import torch
        >>> candidate = quantize(torch.nn.Linear(4, 2), [torch.randn(8, 4) for _ in range(4)])
        >>> candidate.calibration.provenance.samples
        32
    """
    scheme = _scheme(scheme)
    graph, calibration = _calibrated(model, batches, scheme, dynamic_dims)
    return Candidate(name or scheme.method, graph, calibration, scheme)


def _calibrated(
    model: nn.Module,
    batches: Iterable[Any],
    scheme: Scheme,
    dynamic_dims: Mapping[str, Sequence[int]] | None,
) -> tuple[FloatGraph, Calibration]:
    assert not isinstance(scheme.observer, str)
    inputs = iter(calls(batches))
    first = next(inputs, None)
    if first is None:
        raise CalibrationError("batches: it is empty. Give at least one batch of forward inputs.")
    graph = fold(capture(model, *first, dynamic_dims))
    recording = Recording.start(duplicate(graph), scheme)
    for args, kwargs in itertools.chain([first], inputs):
        recording.see(graph.signature.flatten(args, kwargs))
    provenance = Provenance(
        checkpoint="live",
        global_step=None,
        checkpoint_global_step=None,
        split="batches",
        samples=recording.samples,
        batches=recording.batches,
        observer=scheme.observer.name,
        seed=None,
    )
    return graph, Calibration(recording.statistics(), provenance)


def _scheme(given: Scheme | str) -> Scheme:
    return given if isinstance(given, Scheme) else Scheme(method=given)
