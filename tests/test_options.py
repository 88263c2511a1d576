"""An option of another type is refused where it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest

from lq_plugin import ArtifactExport, Budget, DynamicQuantization, Int8Evaluation, Latency, Scheme, StaticQuantization
from lq_plugin.errors import ConfigError
from lq_plugin.search.mixed_precision import Search

WRONG: list[tuple[Callable[..., Any], str, Any]] = [
    (Scheme, "reduce_range", "no"),
    (Scheme, "weight_symmetric", "false"),
    (Scheme, "activation_symmetric", 1),
    (Scheme, "embeddings", "x"),
    (Scheme, "method", 5),
    (Scheme, "skip", None),
    (Scheme, "only", 5),
    (Scheme, "algorithms", 5),
    (Scheme, "algorithm_samples", 1.5),
    (Scheme, "algorithm_time_limit", True),
    (Budget, "max_drop", None),
    (Budget, "max_drop", float("nan")),
    (Budget, "relative", "x"),
    (Latency, "threads", 1.5),
    (Latency, "batch_size", None),
    (Latency, "batch_size", numpy.int64(2)),  # no manifest can hold it
    (Search, "max_trials", "x"),
    (Int8Evaluation, "latency", {"batch_size": 8}),
    (Int8Evaluation, "latency", True),
    (Int8Evaluation, "search", True),
    (Int8Evaluation, "budget", 0.01),
    (Int8Evaluation, "metrics", {"acc": 5}),
    (Int8Evaluation, "splits", []),
    (Int8Evaluation, "splits", 5),
    (StaticQuantization, "samples", "512"),
    (StaticQuantization, "samples", float("nan")),
    (StaticQuantization, "seed", "x"),
    (StaticQuantization, "target", 5),
    (StaticQuantization, "checkpoint", None),
    (StaticQuantization, "checkpoint", "best:"),
    (StaticQuantization, "dynamic_dims", "x"),
    (StaticQuantization, "dynamic_dims", {"x": 2}),
    (DynamicQuantization, "dynamic_dims", {5: [1]}),
    (ArtifactExport, "formats", 5),
    (ArtifactExport, "output_dir", 5),
    (ArtifactExport, "sign", 5),
]


@pytest.mark.parametrize(
    ("made", "option", "given"), WRONG, ids=[f"{made.__name__}-{option}-{given}" for made, option, given in WRONG]
)
def test_another_type_is_refused_by_name(made: Callable[..., Any], option: str, given: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{option}: "):
        made(**{option: given})


def test_an_int_is_a_float() -> None:
    assert Budget(max_drop=1).max_drop == 1
