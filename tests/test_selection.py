"""The budget and the choice."""

from __future__ import annotations

from typing import Any

import pytest

from lq_plugin import Budget
from lq_plugin.errors import ConfigError
from lq_plugin.evaluation.judging import select, unselected
from lq_plugin.report.manifest import Entry, Fp32, LatencyRecord
from lq_plugin.selection import pareto_front, resolve


@pytest.mark.parametrize(
    ("budget", "fp32", "int8", "drop"),
    [
        (Budget(mode="max"), 0.8, 0.6, 0.25),
        (Budget(mode="max"), 0.8, 1.0, -0.25),
        (Budget(mode="min"), 2.0, 3.0, 0.5),
        (Budget(mode="min"), 2.0, 1.0, -0.5),
        (Budget(mode="min"), -2.0, -1.0, 0.5),
        (Budget(), 2.0, 3.0, 0.5),
        (Budget(), 2.0, 1.0, 0.5),
        (Budget(relative=False, mode="max"), 0.8, 0.6, 0.2),
        (Budget(relative=False, mode="min"), 2.0, 3.0, 1.0),
        (Budget(mode="max"), 0.0, -0.5, 0.5),
    ],
)
def test_the_drop_counts_in_the_budgets_terms(budget: Budget, fp32: float, int8: float, drop: float) -> None:
    assert budget.drop(fp32, int8) == pytest.approx(drop)
    resolved = Budget("metric", budget.max_drop, budget.relative, budget.mode)
    measured = entry("a", None, metrics={"metric": int8}, delta={"metric": int8 - fp32})
    assert measured.drop(resolved) == pytest.approx(drop)


def test_without_a_metric_there_is_no_drop() -> None:
    assert entry("a", None).drop(Budget()) is None


@pytest.mark.parametrize(
    ("budget", "monitor", "mode", "metric", "known_mode"),
    [
        (Budget(), "acc", "max", "acc", "max"),
        (Budget(), "acc", "min", "acc", "min"),
        (Budget(mode="min"), "acc", "max", "acc", "min"),
        (Budget(), "train/loss", "min", "loss", None),
        (Budget(), None, None, "loss", None),
        (Budget("loss"), "acc", "max", "loss", None),
        (Budget("acc"), "acc", "max", "acc", "max"),
    ],
)
def test_the_metric_is_the_given_the_monitored_or_the_first_one(
    budget: Budget, monitor: str | None, mode: str | None, metric: str, known_mode: str | None
) -> None:
    found = resolve(budget, ["loss", "acc"], monitor, mode)
    assert (found.metric, found.mode) == (metric, known_mode)
    assert (found.max_drop, found.relative) == (budget.max_drop, budget.relative)


def test_a_module_that_logs_nothing_has_no_metric() -> None:
    assert resolve(Budget(), [], "acc", "max").metric is None


def test_a_metric_that_is_not_logged_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"budget\.metric: 'ac' is unknown. Did you mean 'acc'\? Allowed: 'acc', 'loss'"
    ):
        resolve(Budget("ac"), ["loss", "acc"], None, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_drop": -0.1}, "max_drop: -0.1 is not allowed. Allowed: 0 or more"),
        ({"mode": "maxi"}, r"mode: 'maxi' is unknown. Did you mean 'max'"),
    ],
)
def test_a_budget_that_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Budget(**options)


def entry(candidate: str, median: float | None, status: str = "ok", **measured: Any) -> Entry:
    latency = None if median is None else LatencyRecord(median)
    return Entry(candidate, "static", "onnxruntime", "onnx", status=status, latency_ms=latency, **measured)


@pytest.mark.parametrize(
    ("artifacts", "selected"),
    [
        ([], None),
        ([entry("a", 2.0), entry("b", 1.0)], "b/onnx"),
        ([entry("a", 2.0), entry("b", 1.0, "over_budget")], "a/onnx"),
        ([entry("a", 2.0), entry("b", None)], "a/onnx"),
        ([entry("a", 1.0), entry("b", 1.0)], "a/onnx"),
        ([entry("a", 2.0, "failed"), entry("b", 1.0, "over_budget")], None),
    ],
)
def test_the_fastest_within_the_budget_is_selected(artifacts: list[Entry], selected: str | None) -> None:
    assert select(artifacts) == selected


@pytest.mark.parametrize(
    ("medians", "fp32", "selected"),
    [
        ([2.0, 1.0], {"torch": 9.0, "openvino": 1.0}, "1/onnx"),
        ([2.0, 1.0], {"torch": 9.0, "openvino": 0.9}, None),
        ([2.0, 1.0], {}, "1/onnx"),  # nothing of FP32 was timed
        ([None, None], {"torch": 9.0}, None),
    ],
)
def test_what_is_slower_than_the_fastest_fp32_is_never_selected(
    medians: list[float | None], fp32: dict[str, float], selected: str | None
) -> None:
    artifacts = [entry(str(n), median, fp32=Fp32(latency_ms=fp32)) for n, median in enumerate(medians)]
    assert select(artifacts) == selected
    reason = unselected(artifacts)
    assert (reason is None) == (selected is not None or None in medians)
    assert reason is None or "0.900 ms on openvino, 1.000 ms for 1/onnx" in reason


def test_a_slower_artifact_is_selected_where_its_own_fp32_is_slower_too() -> None:
    artifacts = [
        entry("a", 1.0, fp32=Fp32(latency_ms={"torch": 0.5})),
        entry("b", 2.0, fp32=Fp32(latency_ms={"torch": 3.0})),
    ]
    assert (select(artifacts), unselected(artifacts)) == ("b/onnx", None)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], set()),
        ([(1, 1, 1)], {0}),
        ([(1, 1, 1), (2, 2, 2)], {0}),
        ([(1, 1, 1), (1, 1, 2)], {0}),
        ([(1, 2, 3), (3, 2, 1), (2, 2, 2), (3, 3, 3)], {0, 1, 2}),
        ([(1, 1, 1), (1, 1, 1), (2, 1, 1)], {0, 1}),
        ([(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1)], {0, 1, 2}),
        ([(-0.9, 1.0, 5.0), (-0.8, 2.0, 6.0), (-0.95, 9.0, 9.0)], {0, 2}),
    ],
)
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, ...]], front: set[int]) -> None:
    assert pareto_front(points) == front
