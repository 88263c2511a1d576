"""The float target runs once for all artifacts, except where its call does more than return an output."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Images, Tiny, images
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lq_plugin.evaluation import fidelity, side_effects
from lq_plugin.evaluation.fidelity import FloatOutputs, call_key
from lq_plugin.evaluation.loop import Data
from lq_plugin.evaluation.metrics import Scores, scores

DATA = Data(loaders={"validate": Images().val_dataloader()})  # two batches
CALLS: list[Tensor] = []
Leave = Callable[[Any, Any], Any]


class Plain(Tiny):
    """Notes each call of its forward outside of itself."""

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(x)
        return super().forward(x)


class Keeping(Plain):
    """Its step reads what its forward has kept."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x.mean()
        return super().forward(x)


class Changing(Plain):
    """Its forward changes the batch that its step reads."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


class State:
    """A plain object that holds what a forward leaves behind."""

    loss: Tensor


class Leaving(Plain):
    """Its forward leaves something behind, in place, which its step logs."""

    def __init__(self, leave: Leave, read: Leave | None) -> None:
        super().__init__()
        self.leave, self.read = [leave], [read]
        self.register_buffer("aux", torch.full((), torch.nan))
        self.losses, self.cache, self.nested = {"aux": torch.zeros(())}, [0.0, 0.0], ({"aux": [0.0]},)
        self.plain, self.counts, self.last, self.state = torch.zeros(2), np.zeros(2), deque([0.0], 1), State()
        self.numbers = itertools.count() if leave is LEFT["an iterator"][0] else None

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        self.leave[0](self, output.abs().mean())
        return output

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        if self.read[0] is not None:
            self.log("left", float(self.read[0](self, None)))


def once(model: Any, mean: Tensor) -> None:
    """Leaves something behind in the first call alone."""
    if model.aux.isnan():
        model.aux.copy_(mean)


LEFT: dict[str, tuple[Leave, Leave | None]] = {
    "a buffer": (lambda m, mean: m.aux.copy_(mean), lambda m, _: m.aux),
    "a buffer's data": (lambda m, mean: m.aux.data.fill_(mean), lambda m, _: m.aux),
    "a buffer, once": (once, lambda m, _: m.aux),
    "a key that exists": (lambda m, mean: m.losses.update(aux=mean), lambda m, _: m.losses["aux"]),
    "an item that exists": (lambda m, mean: m.cache.__setitem__(0, mean), lambda m, _: m.cache[0]),
    "an item deep inside": (
        lambda m, mean: m.nested[0]["aux"].__setitem__(0, mean),
        lambda m, _: m.nested[0]["aux"][0],
    ),
    "a tensor": (lambda m, mean: m.plain[:1].copy_(mean), lambda m, _: m.plain[0]),
    "a tensor's data": (lambda m, mean: m.plain.data[:1].fill_(mean), lambda m, _: m.plain[0]),
    "an array": (lambda m, mean: m.counts.__setitem__(0, mean), lambda m, _: m.counts[0]),
    "a queue": (lambda m, mean: m.last.append(mean), lambda m, _: m.last[0]),
    "an object": (lambda m, mean: setattr(m.state, "loss", mean), lambda m, _: m.state.loss),
    "an iterator": (lambda m, mean: next(m.numbers), lambda m, _: next(m.numbers)),
    "a number that was drawn": (lambda m, mean: torch.rand(()), lambda m, _: torch.rand(())),
    "what is logged": (lambda m, mean: m.log("left", mean), None),
}


class Again(Plain):
    """Its forward calls itself."""

    def forward(self, x: Tensor, again: bool = True) -> Tensor:
        return self(x, again=False) if again else super().forward(x)


class Hooked(Plain):
    """A hook inside of its target keeps what its step reads."""

    def __init__(self, bound: bool) -> None:
        super().__init__()
        self.kept = torch.zeros(())
        self.net[0].register_forward_hook(self.keep if bound else lambda *call: self.keep(*call))

    def keep(self, part: nn.Module, args: Any, output: Tensor) -> None:
        self.kept = output.mean()

    def validation_step(self, batch: Any, index: int) -> None:
        super().validation_step(batch, index)
        self.log("kept", self.kept)


class Slightly(nn.Module):
    """What stands for an artifact."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3]


def beside(model: Tiny, floats: FloatOutputs | None, data: Data = DATA) -> tuple[Scores, int]:
    """Scores of the artifact, and how often the float target ran for them."""
    scores(model, DATA, "validate", None, floats=floats)
    CALLS.clear()
    return scores(model, data, "validate", Slightly(), floats=floats), len(CALLS)


def test_a_kept_output_takes_the_place_of_a_call_and_gives_the_same_figures() -> None:
    model = Plain()
    (kept, calls), (computed, computing) = beside(model, FloatOutputs()), beside(model, None)
    assert (calls, computing) == (0, 2)
    assert kept == computed


@pytest.mark.parametrize("model", [Keeping, Changing])
def test_a_call_that_leaves_something_behind_is_made_again(model: type[Plain]) -> None:
    assert beside(model(), FloatOutputs())[1] == 2


@pytest.mark.parametrize("left", LEFT)
def test_what_a_forward_leaves_behind_is_logged_as_without_kept_outputs(left: str) -> None:
    model = Leaving(*LEFT[left])
    (kept, calls), (computed, _) = beside(model, FloatOutputs()), beside(model, None)
    assert calls == 2
    assert kept == computed
    assert "left" in kept.metrics


@pytest.mark.parametrize("bound", [True, False])
def test_what_a_hook_keeps_outside_of_the_target_is_logged_as_without_kept_outputs(bound: bool) -> None:
    model, floats = Hooked(bound), FloatOutputs()
    scores(model, DATA, "validate", None, target="net", floats=floats)
    kept, computed = (scores(model, DATA, "validate", Slightly(), target="net", floats=f) for f in (floats, None))
    assert kept == computed


def test_buffers_that_are_not_a_number_are_no_change() -> None:
    model = Leaving(lambda m, mean: None, None)
    assert beside(model, FloatOutputs())[1] == 0


def test_more_than_can_be_looked_at_is_taken_as_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_effects, "_MOST_OBJECTS", 20)
    assert beside(Plain(), FloatOutputs())[1] == 2


def test_the_output_of_a_call_with_another_inside_is_kept_for_its_own_number() -> None:
    floats, x = FloatOutputs(), next(iter(Images().val_dataloader()))[0]
    scores(Again(), DATA, "validate", None, floats=floats)
    assert floats.of(call_key(0, [x], {})) is not None


def test_other_bytes_are_computed() -> None:
    other = Data(loaders={"validate": DataLoader(images(16, 5), 8)})
    assert beside(Plain(), FloatOutputs(), other)[1] == 2


def test_outputs_beyond_the_limit_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "_MOST_BYTES", 8 * 3 * 4)  # one of two batches
    assert beside(Plain(), FloatOutputs())[1] == 1


def test_a_kept_output_is_a_copy() -> None:
    floats, key, output = FloatOutputs(), call_key(0, [torch.ones(2)], {}), torch.ones(2)
    floats.keep(key, output)
    output.zero_()
    assert torch.equal(floats.of(key), torch.ones(2))


@pytest.mark.parametrize(
    ("number", "args", "kwargs"),
    [
        (1, [torch.ones(2), 1], {}),
        (0, [torch.ones(2), 2], {}),
        (0, [torch.ones(2)], {"x": 1}),
        (0, [torch.zeros(2), 1], {}),
    ],
)
def test_a_call_is_known_by_its_number_and_all_that_it_is_given(number: int, args: list[Any], kwargs: Any) -> None:
    assert call_key(number, args, kwargs) != call_key(0, [torch.ones(2), 1], {})
    assert call_key(0, [torch.ones(2), 1], {}) == call_key(0, [torch.ones(2), 1], {})


def test_a_call_with_other_objects_is_not_known() -> None:
    assert call_key(0, [torch.ones(2), object()], {}) is None
