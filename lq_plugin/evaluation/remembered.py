"""What an interrupted run has measured: which digest it is found by, and in which form it is kept.

Latencies of different sessions are not comparable, so those of one session are reused all together or not at all.
Scores are reused only where FP32, which is always evaluated first, gives the same metrics on the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from lq_plugin import checksums
from lq_plugin.artifacts.digest import own_code
from lq_plugin.evaluation.fidelity import FloatOutputs
from lq_plugin.evaluation.latency import Latency, Timing
from lq_plugin.evaluation.metrics import Scores
from lq_plugin.identity import code_digest, tensors_digest, weights_digest
from lq_plugin.report.decoder import encode
from lq_plugin.report.environment import environment
from lq_plugin.report.manifest import Entry, Fp32


def latencies_digest(target: nn.Module, entries: Sequence[Entry], inputs: Sequence[Tensor], options: Latency) -> str:
    """Return a sha256 of what is timed together, and how.

    Args:
        target: the float model.
        entries: the artifacts.
        inputs: flat input tensors of the call.
        options: how long, how often and with how many threads.
    """
    made = [[entry.label, dict(entry.sha256)] for entry in entries]
    call = tensors_digest({str(place): tensor for place, tensor in enumerate(inputs)})
    how = [asdict(options), options.number_of_threads]
    code = [own_code(), code_digest(map(type, target.modules()))]
    return checksums.of_json([made, weights_digest(target), code, call, how, encode(environment())])


def write_timings(timings: Mapping[str, Timing]) -> Any:
    """Return timings as tensors and builtins.

    Raises:
        ValueError: something could not be timed, which may work the next time.
    """
    if failed := [name for name, timing in timings.items() if timing.error is not None]:
        raise ValueError(f"{failed} could not be timed")
    return {name: dict(vars(timing)) for name, timing in timings.items()}


def read_timings(content: Any) -> dict[str, Timing]:
    """Return what :func:`write_timings` wrote.

    Raises:
        Exception: the content is something else.
    """
    timings = {str(name): Timing(**fields) for name, fields in content.items()}
    for timing in timings.values():
        numbers = timing.median, timing.p90, float(timing.calls)
        if not all(isinstance(number, float) and number > 0 for number in numbers) or timing.error is not None:
            raise ValueError("no latency")
        if not all(isinstance(output, Tensor) for output in timing.outputs):
            raise ValueError("no outputs")
    return timings


def conditions(
    model: nn.Module, metrics: Mapping[str, Metric], label: Any, fp32: Fp32, floats: Mapping[str, FloatOutputs]
) -> str | None:
    """Return a sha256 of what scores depend on besides the artifact; ``None`` where the inputs of FP32 are not known.

    Equal metrics of FP32 are not enough: they may be perfect by two measures of which INT8 meets one.

    Args:
        model: the whole LightningModule, whose steps compute the metrics.
        metrics: those that are given by name.
        label: where a batch holds the labels.
        fp32: the figures of the float model.
        floats: what the float model was given, by split.
    """
    inputs = {split: outputs.inputs for split, outputs in floats.items()}
    if None in inputs.values():
        return None
    given = {name: [type(metric).__qualname__, _options(metric)] for name, metric in metrics.items()}
    code = [own_code(), code_digest(map(type, (*model.modules(), *metrics.values())))]
    found = {name: float(value).hex() for name, value in fp32.metrics.items()}
    content = [given, str(label), code, weights_digest(model), found, inputs, encode(environment())]
    return checksums.of_json(content)


def scores_digest(entry: Entry, under: str | None) -> str | None:
    """Return a sha256 of what an artifact's scores depend on; ``None`` where that is not known.

    Args:
        entry: the artifact.
        under: see :func:`conditions`.
    """
    return None if under is None else checksums.of_json([entry.format, dict(entry.sha256), under])


def write_scores(found: Mapping[str, Scores]) -> Any:
    """Return scores by split as builtins."""
    return {split: [dict(scores.metrics), scores.sqnr_db] for split, scores in found.items()}


def read_scores(content: Any) -> dict[str, Scores]:
    """Return what :func:`write_scores` wrote.

    Raises:
        Exception: the content is something else.
    """
    return {
        str(split): Scores(
            {str(name): float(value) for name, value in metrics.items()}, None if sqnr is None else float(sqnr)
        )
        for split, (metrics, sqnr) in content.items()
    }


def _options(metric: Metric) -> dict[str, Any]:
    """The plain attributes of a metric, such as its ``top_k``."""
    return {name: value for name, value in sorted(vars(metric).items()) if isinstance(value, str | bool | int | float)}
