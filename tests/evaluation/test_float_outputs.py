"""The float target runs once for all artifacts, except where its call does more than return an output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import Images, Tiny, images
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lq_plugin.evaluation import fidelity
from lq_plugin.evaluation.fidelity import FloatOutputs, call_key
from lq_plugin.evaluation.loop import Data
from lq_plugin.evaluation.metrics import Scores, scores

DATA = Data(loaders={"validate": Images().val_dataloader()})  # two batches
CALLS: list[Tensor] = []


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
