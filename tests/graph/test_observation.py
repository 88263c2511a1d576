"""A bounded choice of a pass's batches is observed, and whatever fails in that stays there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import MinMaxObserver, Scheme
from lq_plugin.errors import CalibrationError, CaptureError, ConfigError
from lq_plugin.graph.calibration import Calibration
from lq_plugin.graph.observation import Begin, Observation, ObservationPlan, calibrate_pass, merged
from lq_plugin.graph.prepare import TrackedTarget

BATCH = 4
SCHEME = Scheme(observer=MinMaxObserver())


class Net(nn.Module):
    """A linear layer whose forward may fail or branch on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, branch: bool = False) -> Tensor:
        if branch and x.sum() > 0:  # no graph can hold this
            x = -x
        return self.layer(x)


def batches(count: int, size: int = BATCH) -> Iterator[Tensor]:
    """Each batch holds nothing but its own number, from 1 on."""
    return (torch.full((size, 2), float(number)) for number in range(1, count + 1))


def plan(samples: int = 8, seed: int = 0, scheme: Scheme = SCHEME) -> ObservationPlan:
    return ObservationPlan(scheme, samples=samples, seed=seed)


def begun(target: nn.Module, count: int = 1, sanity_check: bool = False) -> Observation:
    return Observation(plan(), target, TrackedTarget(), [count], sanity_check=sanity_check)


def fed(one: Observation, target: nn.Module, given: Iterable[Any]) -> Calibration | None:
    """Run a pass to its end."""
    for x in given:
        one.next_batch()
        target(x)
    return one.close()


def test_the_copy_of_the_weights_is_freed_when_a_pass_ends() -> None:
    target = Net()
    one = begun(target)
    one.next_batch()
    target(torch.ones(BATCH, 2))
    assert one._recording is not None
    copied = list(one._recording.graph.module.parameters())
    assert sum(tensor.nbytes for tensor in copied) == sum(tensor.nbytes for tensor in target.parameters())
    assert one.close() is not None
    assert sum(tensor.nbytes for tensor in copied) == 0
    assert target.layer.weight.nbytes > 0


def observe(
    how: ObservationPlan,
    target: nn.Module,
    given: Iterable[Any],
    counts: Sequence[float],
    processes: int = 1,
    tracked: TrackedTarget | None = None,
) -> Calibration:
    """What is observed in one pass."""
    found = fed(Observation(how, target, tracked or TrackedTarget(), counts, processes), target, given)
    assert found is not None
    return found


def numbers(found: Calibration) -> tuple[int, int]:
    """Lowest and highest number of the batches whose input was observed."""
    statistics = found.statistics.values()
    (ranges,) = [s for s in statistics if float(s["low"]).is_integer() and float(s["high"]).is_integer()]
    return int(ranges["low"]), int(ranges["high"])


@pytest.mark.parametrize(
    ("samples", "count", "processes", "wanted"),
    [(8, 5, 1, 2), (9, 5, 1, 3), (1, 5, 1, 1), (100, 5, 1, 5), (16, 5, 2, 2), (8, 5, 100, 1)],
)
def test_so_many_samples_are_observed_in_whole_batches_shared_by_the_processes(
    samples: int, count: int, processes: int, wanted: int
) -> None:
    found = observe(plan(samples), Net(), batches(count), [count], processes).provenance
    assert (found.batches, found.samples) == (wanted, wanted * BATCH)


def test_the_batches_are_those_that_the_seed_draws_from_all_loaders() -> None:
    target, drawn = Net(), set()
    for seed in range(3):
        state = torch.get_rng_state()
        first, again = (numbers(observe(plan(4, seed), target, batches(6), [2, 4])) for _ in range(2))
        assert first == again
        assert torch.equal(torch.get_rng_state(), state)
        drawn.add(first[0])
    assert len(drawn) > 1
    assert max(drawn) > 2  # of the second loader


def test_of_loaders_without_a_length_the_first_batches_are_observed() -> None:
    assert numbers(observe(plan(8), Net(), batches(6), [3, math.inf])) == (1, 2)


def test_batches_smaller_than_the_first_count_as_one() -> None:
    found = observe(plan(9), Net(), [torch.ones(size, 2) for size in (4, 2, 1)], [3]).provenance
    assert (found.batches, found.samples) == (3, 7)


def test_it_is_the_calibration_of_the_functional_twin() -> None:
    target = Net()
    found, expected = observe(plan(100), target, batches(3), [3]), lq_plugin.calibrate(target, batches(3), SCHEME)
    assert found.statistics == expected.statistics
    assert (found.provenance.digest, found.provenance.structure) == (
        expected.provenance.digest,
        expected.provenance.structure,
    )


def test_the_sanity_check_captures_and_observes_nothing() -> None:
    target, tracked = Net(), TrackedTarget()
    one = Observation(plan(), target, tracked, [2], sanity_check=True)
    assert fed(one, target, batches(2)) is None
    assert (one.called, one.failure) == (True, None)
    assert tracked.example is not None
    assert torch.equal(tracked.example.call[0][0], torch.ones(BATCH, 2))
    assert numbers(observe(plan(), target, batches(1), [1], tracked=tracked)) == (1, 1)


def test_every_pass_begins_afresh() -> None:
    target, tracked = Net(), TrackedTarget()
    assert numbers(observe(plan(100), target, batches(5), [5], tracked=tracked)) == (1, 5)
    with torch.no_grad():
        target.layer.weight.mul_(100)  # as training does, in place
    found = observe(plan(100), target, batches(2), [2], tracked=tracked)
    assert numbers(found) == (1, 2)
    assert found.statistics == lq_plugin.calibrate(target, batches(2), SCHEME).statistics


def test_a_target_that_is_not_called_is_known() -> None:
    target = Net()
    one = begun(target, 2)
    assert fed(one, target, ()) is None
    assert (one.called, one.failure) == (False, None)


class Branching(Net):
    def forward(self, x: Tensor, branch: bool = True) -> Tensor:
        return super().forward(x, branch)


@pytest.mark.parametrize(
    ("target", "scheme", "kind"),
    [(Branching(), SCHEME, CaptureError), (Net(), Scheme(observer=MinMaxObserver(), skip=["op:conv9d"]), ConfigError)],
)
def test_a_users_mistake_stops_the_sanity_check_an_inability_does_not_and_neither_stops_training(
    target: nn.Module, scheme: Scheme, kind: type[Exception]
) -> None:
    one = Observation(plan(scheme=scheme), target, TrackedTarget(), [1], sanity_check=True)
    with pytest.raises(ConfigError) if kind is ConfigError else nullcontext():
        fed(one, target, batches(1))
    one.close()
    assert isinstance(one.failure, CaptureError) == (kind is CaptureError)
    assert "forward" not in target.__dict__
    one = Observation(plan(scheme=scheme), target, TrackedTarget(), [2])
    assert fed(one, target, batches(2)) is None
    assert isinstance(one.failure, kind)
    assert "forward" not in target.__dict__


def test_a_failure_in_the_middle_of_a_pass_discards_the_pass() -> None:
    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Any) -> Tensor:
            return self.layer(x if isinstance(x, Tensor) else x[0])

    target = Summing()
    one = begun(target, 2)
    assert fed(one, target, [torch.ones(BATCH, 2), [torch.ones(BATCH, 2)]]) is None
    assert one.failure is not None
    assert target(torch.ones(1, 2)).shape == (1, 2)


@dataclass(frozen=True)
class Broken(MinMaxObserver):
    def update(self, statistic: Any, values: Tensor) -> Any:
        raise ZeroDivisionError("in the observer")


def test_an_exception_that_is_none_of_ours_is_named_as_the_calibrations() -> None:
    target = Net()
    one = Observation(plan(scheme=Scheme(observer=Broken())), target, TrackedTarget(), [1])
    assert fed(one, target, batches(1)) is None
    assert isinstance(one.failure, CalibrationError)
    assert isinstance(one.failure.__cause__, ZeroDivisionError)
    assert str(one.failure) == "calibration: in the observer"


def test_the_targets_own_exception_passes_and_its_forward_is_given_back() -> None:
    target = Net()
    one = begun(target)
    one.next_batch()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        target(torch.ones(1, 3))
    assert "forward" in target.__dict__
    assert one.close() is None
    assert "forward" not in target.__dict__
    assert (one.called, one.failure) == (False, None)


def test_the_target_gives_what_it_would_give_and_its_inputs_stay() -> None:
    target, x = Net(), torch.ones(BATCH, 2)
    expected = target(x)
    one = begun(target)
    one.next_batch()
    with torch.inference_mode():
        assert torch.equal(target(x), expected)
    assert torch.equal(target(x=x), expected)
    assert target(x).requires_grad
    one.close()
    assert torch.equal(x, torch.ones(BATCH, 2))
    assert target.training


def test_a_pass_of_its_own_gives_a_calibration() -> None:
    target = Net()

    def run(begin: Begin) -> None:
        one = begin(target, [3])
        for x in batches(3):
            one.next_batch()
            target(x)

    found, _ = calibrate_pass(run, plan(100)) or pytest.fail("never called")
    assert found.statistics == lq_plugin.calibrate(target, batches(3), SCHEME).statistics
    assert "forward" not in target.__dict__
    assert calibrate_pass(lambda begin: begin(target, [1]), plan()) is None
    with pytest.raises(CalibrationError, match="calibration: in the observer"):
        calibrate_pass(run, plan(scheme=Scheme(observer=Broken())))


def test_what_processes_observed_is_merged_and_fits_no_graph_if_their_graphs_or_weights_differed() -> None:
    target = Net()
    first, second = (observe(plan(), target, given, [1]) for given in (batches(1), list(batches(2))[1:]))
    together = merged(plan(), [first, second], 5)
    assert numbers(together) == (1, 2)
    assert (together.provenance.samples, together.provenance.batches, together.provenance.global_step) == (8, 2, 5)
    digest = first.provenance.digest
    assert plan().fits(together, digest)
    assert not plan(seed=1).fits(together, digest)
    assert not plan().fits(together, "another")
    other = replace(second, provenance=replace(second.provenance, digest="another"))
    assert not plan().fits(merged(plan(), [first, other]), digest)
