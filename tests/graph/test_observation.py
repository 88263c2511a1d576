"""The listener looks at a bounded choice of a pass's batches, and whatever happens to it stays with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import MinMaxObserver, Scheme
from lq_plugin.callbacks.listening import Listener, Seen
from lq_plugin.errors import CalibrationError, CaptureError, ConfigError

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


def listener(samples: int = 8, seed: int = 0, scheme: Scheme = SCHEME) -> Listener:
    return Listener(scheme, samples, seed, {})


def hear(
    one: Listener,
    target: nn.Module,
    given: Iterator[Tensor],
    counts: Sequence[float],
    processes: int = 1,
    rehearsal: bool = False,
) -> Seen | None:
    """One pass."""
    one.start(target, counts, processes, rehearsal)
    for x in given:
        one.next_batch()
        target(x)
    return one.stop()


def numbers(seen: Seen | None) -> tuple[int, int]:
    """Lowest and highest number of the batches whose input was observed."""
    assert seen is not None
    (ranges,) = [s for s in seen.statistics.values() if float(s["low"]).is_integer() and float(s["high"]).is_integer()]
    return int(ranges["low"]), int(ranges["high"])


@pytest.mark.parametrize(
    ("samples", "count", "processes", "wanted"),
    [(8, 5, 1, 2), (9, 5, 1, 3), (1, 5, 1, 1), (100, 5, 1, 5), (16, 5, 2, 2), (8, 5, 100, 1)],
)
def test_so_many_samples_are_observed_in_whole_batches_shared_by_the_processes(
    samples: int, count: int, processes: int, wanted: int
) -> None:
    seen = hear(listener(samples), Net(), batches(count), [count], processes)
    assert seen is not None
    assert (seen.batches, seen.samples) == (wanted, wanted * BATCH)


def test_the_batches_are_those_that_the_seed_draws_from_all_loaders() -> None:
    target, drawn = Net(), set()
    for seed in range(3):
        state = torch.get_rng_state()
        first, again = (numbers(hear(listener(4, seed), target, batches(6), [2, 4])) for _ in range(2))
        assert first == again
        assert torch.equal(torch.get_rng_state(), state)
        drawn.add(first[0])
    assert len(drawn) > 1
    assert max(drawn) > 2  # of the second loader


def test_of_loaders_without_a_length_the_first_batches_are_observed() -> None:
    assert numbers(hear(listener(8), Net(), batches(6), [3, math.inf])) == (1, 2)


def test_batches_smaller_than_the_first_count_as_one() -> None:
    def shrinking() -> Iterator[Tensor]:
        return (torch.ones(size, 2) for size in (4, 2, 1))

    seen = hear(listener(9), Net(), shrinking(), [3])
    assert seen is not None
    assert (seen.batches, seen.samples) == (3, 7)


def test_the_statistics_are_those_of_the_functional_twin() -> None:
    target = Net()
    seen = hear(listener(100), target, batches(3), [3])
    assert seen is not None
    assert seen.statistics == lq_plugin.calibrate(target, batches(3), SCHEME).statistics


def test_a_rehearsal_captures_and_observes_nothing() -> None:
    one, target = listener(), Net()
    assert hear(one, target, batches(2), [2], rehearsal=True) is None
    assert one.heard
    assert one.example is not None
    assert torch.equal(one.example[0][0], torch.ones(BATCH, 2))
    assert numbers(hear(one, target, batches(1), [1])) == (1, 1)


def test_every_pass_begins_afresh() -> None:
    one, target = listener(100), Net()
    assert numbers(hear(one, target, batches(5), [5])) == (1, 5)
    with torch.no_grad():
        target.layer.weight.mul_(100)  # as training does, in place
    seen = hear(one, target, batches(2), [2])
    assert numbers(seen) == (1, 2)
    assert seen is not None
    assert seen.statistics == lq_plugin.calibrate(target, batches(2), SCHEME).statistics


def test_a_target_that_is_not_called_is_not_heard() -> None:
    one = listener()
    assert hear(one, Net(), iter(()), [2]) is None
    assert (one.heard, one.example, one.failure) == (False, None, None)


def test_what_was_heard_in_an_earlier_pass_does_not_count() -> None:
    one, target = listener(), Net()
    hear(one, target, batches(1), [1])
    assert hear(one, target, iter(()), [1]) is None
    assert not one.heard


class Branching(Net):
    def forward(self, x: Tensor, branch: bool = True) -> Tensor:
        return super().forward(x, branch)


@pytest.mark.parametrize(
    ("target", "scheme", "kind"),
    [(Branching(), SCHEME, CaptureError), (Net(), Scheme(observer=MinMaxObserver(), skip=["op:conv9d"]), ConfigError)],
)
def test_a_users_mistake_stops_a_rehearsal_what_a_model_cannot_do_does_not_and_neither_stops_training(
    target: nn.Module, scheme: Scheme, kind: type[Exception]
) -> None:
    one = listener(scheme=scheme)
    with pytest.raises(ConfigError) if kind is ConfigError else nullcontext():
        hear(one, target, batches(1), [1], rehearsal=True)
    one.stop()
    assert isinstance(one.failure, CaptureError) == (kind is CaptureError)
    assert "forward" not in target.__dict__
    one = listener(scheme=scheme)
    assert hear(one, target, batches(2), [2]) is None
    assert isinstance(one.failure, kind)
    assert "forward" not in target.__dict__
    failure = one.failure
    assert hear(one, target, batches(2), [2]) is None
    assert one.failure is failure  # nothing is tried again
    assert one.heard


def test_a_failure_in_the_middle_of_a_pass_discards_the_pass_alone() -> None:
    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Any) -> Tensor:
            return self.layer(x if isinstance(x, Tensor) else x[0])

    one, target = listener(100), Summing()
    given: list[Any] = [torch.ones(BATCH, 2), [torch.ones(BATCH, 2)]]
    assert hear(one, target, iter(given), [2]) is None
    assert one.failure is not None
    assert target(torch.ones(1, 2)).shape == (1, 2)


@dataclass(frozen=True)
class Broken(MinMaxObserver):
    def update(self, statistic: Any, values: Tensor) -> Any:
        raise ZeroDivisionError("in the observer")


def test_an_exception_that_is_none_of_ours_is_named_as_the_calibrations() -> None:
    one = listener(scheme=Scheme(observer=Broken()))
    assert hear(one, Net(), batches(1), [1]) is None
    assert isinstance(one.failure, CalibrationError)
    assert str(one.failure) == "calibration: in the observer"


def test_the_targets_own_exception_passes_and_stop_gives_its_forward_back() -> None:
    one, target = listener(), Net()
    one.start(target, [1], 1, rehearsal=False)
    one.next_batch()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        target(torch.ones(1, 3))
    assert "forward" in target.__dict__
    assert one.stop() is None
    assert "forward" not in target.__dict__
    assert (one.heard, one.failure) == (False, None)


def test_a_pass_that_broke_off_unnoticed_is_not_heard_on() -> None:
    one, first, second = listener(100), Net(), Net()
    one.start(first, [1], 1, rehearsal=False)
    assert hear(one, second, batches(3), [3]) is not None
    assert "forward" not in first.__dict__
    one.start(second, [3], 1, rehearsal=False)
    one.next_batch()
    second(torch.ones(BATCH, 2))
    seen = hear(one, second, batches(3), [3])
    assert seen is not None
    assert seen.batches == 3


def test_the_target_gives_what_it_would_give_and_its_inputs_stay() -> None:
    target, x = Net(), torch.ones(BATCH, 2)
    expected = target(x)
    one = listener()
    one.start(target, [1], 1, rehearsal=False)
    one.next_batch()
    with torch.inference_mode():
        assert torch.equal(target(x), expected)
    assert torch.equal(target(x=x), expected)
    assert target(x).requires_grad
    one.stop()
    assert torch.equal(x, torch.ones(BATCH, 2))
    assert target.training
