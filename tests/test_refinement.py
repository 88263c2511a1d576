"""Algorithms are kept if they help on held-out samples, refused if they do not, and always listed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Scheme, StaticCandidate, candidate, refinement
from lq_plugin.algorithms import TABLE, Algorithm
from lq_plugin.artifacts.digest import artifact_digest
from lq_plugin.errors import CaptureError
from lq_plugin.graph.sampling import Samples
from lq_plugin.learning import AlgorithmStep

OUTLIERS = 40.0


class WithOutliers(nn.Module):
    """A block whose LayerNorm makes two channels far larger than the others; the next weights divide by the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 48), nn.Linear(48, 8)
        with torch.no_grad():
            self.norm.weight[:2] *= OUTLIERS
            self.up.weight[:, :2] /= OUTLIERS

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.norm(x))))


def quantized(samples: int = 64, model: nn.Module | None = None, **options: Any) -> StaticCandidate:
    torch.manual_seed(0)
    model = WithOutliers() if model is None else model
    made = lq_plugin.quantize(model.eval(), torch.randn(samples, 24).split(16), Scheme(**options))
    assert isinstance(made, StaticCandidate)
    return made


def steps(candidate: StaticCandidate) -> Mapping[str, AlgorithmStep]:
    assert candidate.learning is not None
    return {step.algorithm: step for step in candidate.learning.steps}


def test_what_helps_is_kept_and_said_with_its_gain() -> None:
    candidate = quantized(algorithms=["smoothing"])
    (step,) = steps(candidate).values()
    assert step.outcome == "kept"
    assert step.candidate == "static"
    assert all(step.after[runtime] > step.before[runtime] + 3 for runtime in ("onnxruntime", "openvino", "torch"))
    learning = candidate.learning
    assert learning is not None
    assert (learning.samples, learning.judged, learning.left_out, learning.share) == (48, 16, 0, 1.0)


class Branching(WithOutliers):
    """Cannot be captured."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 if x.sum() > 1e6 else x)


@pytest.mark.parametrize("model", [WithOutliers, Branching])
def test_a_dynamic_candidate_that_learns_nothing_is_captured_once(
    model: type[WithOutliers], monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = Mock(side_effect=candidate.prepare)
    monkeypatch.setattr(candidate, "prepare", captured)
    made = lq_plugin.quantize(model(), [torch.ones(8, 24)], "dynamic")
    assert made.learning is not None
    assert [step.outcome for step in made.learning.steps] == ["not_tried"]
    with suppress(CaptureError):
        assert made.graph
    assert captured.call_count == 1


def test_without_algorithms_it_is_plain_calibration() -> None:
    none, auto = quantized(algorithms=[]), quantized(algorithms="smoothing")
    assert none.learning is None
    assert none.graph.digest == none.reference.digest == auto.reference.digest != auto.graph.digest
    assert auto.plain.ranges.keys() == none.ranges.keys()


def test_samples_to_judge_by_are_not_observed() -> None:
    assert [quantized(algorithms=names).provenance.samples for names in ([], "smoothing")] == [64, 48]
    assert quantized(samples=16, algorithms="smoothing").provenance.samples == 16  # nothing is judged
    refused = quantized(algorithms="equalization")  # finds nothing to change
    assert (refused.provenance.samples, refused.learning and refused.learning.judged) == (64, 16)


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, other = quantized(algorithms="auto"), quantized(algorithms="auto")
    assert one.graph.digest == other.graph.digest
    assert one.learnt_ranges == other.learnt_ranges
    assert one.weight_scales.keys() == other.weight_scales.keys()


def test_few_samples_teach_nothing() -> None:
    candidate = quantized(samples=16, algorithms="auto")
    assert {step.outcome for step in steps(candidate).values()} == {"not_tried"}
    assert "16 samples are too few" in steps(candidate)["smoothing"].reason
    assert candidate.graph is candidate.reference


def test_after_the_time_limit_nothing_is_started() -> None:
    candidate = quantized(algorithms="auto", algorithm_time_limit=0)
    assert {step.reason for step in steps(candidate).values()} == {"the time limit of 0 s was reached"}


@pytest.mark.parametrize(
    ("make", "outcome", "reason"),
    [
        (
            lambda candidate: replace(candidate, learnt_ranges=dict.fromkeys(candidate.ranges, (-1e-3, 1e-3))),
            "refused",
            "dB on",
        ),
        (lambda candidate: candidate, "refused", "nothing to change in this model"),
        (lambda candidate: 1 / 0, "failed", "division by zero"),
        (lambda candidate: replace(candidate, graph=_scrambled(candidate)), "refused", "changed the outputs of"),
    ],
)
def test_what_does_not_help_changes_nothing(
    make: Any, outcome: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Algorithm("smoothing", lambda candidate, calls, seed: make(candidate), rewrites=True)
    monkeypatch.setattr(refinement, "TABLE", {**TABLE, "smoothing": bad})
    candidate = quantized(algorithms=["smoothing"])
    (step,) = steps(candidate).values()
    assert step.outcome == outcome
    assert reason in step.reason
    assert candidate.ranges == candidate.plain.ranges
    assert candidate.graph is candidate.reference


def _scrambled(candidate: StaticCandidate) -> Any:
    from lq_plugin.graph.graph import duplicate

    graph = duplicate(candidate.graph)
    with torch.no_grad():
        for tensor in graph.module.state_dict().values():
            tensor.mul_(1.001)
    return graph


class MaskedAndSilent(WithOutliers):
    """Gives logits of which a mask puts one at minus infinity, and an output that is zero."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        masked = torch.cat([logits, torch.full_like(logits[:, :1], -torch.inf)], 1)
        return masked, logits[:, :1] * 0, logits.argmax(1)


def test_infinity_and_zeros_in_outputs_do_not_hide_what_helps() -> None:
    candidate = quantized(model=MaskedAndSilent(), algorithms=["smoothing"])
    (step,) = steps(candidate).values()
    assert step.outcome == "kept", step.reason
    assert all(step.after[runtime] > step.before[runtime] + 3 for runtime in step.before)


def test_the_random_state_is_kept() -> None:
    class Random(WithOutliers):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * torch.rand_like(x[:, :1])

    model, batches = Random().eval(), torch.randn(64, 24).split(16)
    before = torch.get_rng_state()
    lq_plugin.quantize(model, batches, Scheme(algorithms="smoothing"))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_judged_is_good_without_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StaticCandidate, "converted", lambda self, runtime: 1 / 0)
    candidate = quantized(algorithms=["smoothing"])
    (step,) = steps(candidate).values()
    assert (step.outcome, step.reason) == ("failed", "ZeroDivisionError: division by zero")
    assert candidate.graph is candidate.reference


class Convolutions(nn.Module):
    """onnxruntime has a value quantized that the others do not: what SiLU is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.silu(self.first(x)))


def _only_for_onnxruntime(candidate: StaticCandidate, calls: Any, seed: int) -> StaticCandidate:
    """Narrows the range that only onnxruntime needs."""
    return replace(candidate, learnt_ranges={"conv2d": (-4, 4)}) if "onnxruntime" in candidate.runtimes else candidate


def test_what_helps_on_some_runtimes_is_kept_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {**TABLE, "sequential": Algorithm("sequential", _only_for_onnxruntime, rewrites=False)}
    torch.manual_seed(0)
    given = torch.randn(64, 3, 8, 8)
    given[0] *= 40  # observed, and not held out
    batches = given.split(32)
    with monkeypatch.context() as patched:
        patched.setattr(refinement, "TABLE", table)
        scheme = Scheme(observer="minmax", algorithms="sequential")
        made = lq_plugin.quantize(Convolutions().eval(), batches, scheme)
        assert isinstance(made, StaticCandidate)
        assert made.learning is not None
        samples = Samples(tuple((batch,) for batch in batches), ())
        again = refinement.repeated(made.plain, samples, made.learning)
    first, second = made.learning.steps
    assert (first.outcome, first.kept_on, second.outcome) == ("kept", ("onnxruntime",), "refused")
    assert (first.before.keys(), first.reason) == ({"onnxruntime"}, "")
    assert (second.before.keys(), second.reason) == ({"openvino", "torch"}, "it found nothing to change in this model")
    assert sorted(made.runtimes) == sorted(again.runtimes) == ["onnxruntime", "openvino", "torch"]
    for each in (made, again):
        same = {
            runtime: artifact_digest(each, name) == artifact_digest(made.plain, name)
            for name, runtime in (("onnx", "onnxruntime"), ("openvino", "openvino"), ("pt2", "torch"))
        }
        assert same == {"onnxruntime": False, "openvino": True, "torch": True}
    for runtime in made.runtimes:
        (learnt,), (plain,) = (each.in_torch(runtime)(batches[1]) for each in (made, made.plain))
        assert torch.equal(learnt, plain) is (runtime != "onnxruntime")
