"""Where a whole module cannot be captured, the largest of its submodules that can be are found and named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin.errors import CaptureError
from lq_plugin.graph.capture import capture
from lq_plugin.graph.choosing import Choice, choose
from lq_plugin.graph.parts import ATTEMPTS, parts

X = torch.ones(2, 4)


class Branching(nn.Module):
    """Cannot be captured itself."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        for child in self.children():
            x = child(x)
        return x


class Twice(Branching):
    """Calls one of its parts in two ways."""

    def forward(self, x: Tensor) -> Tensor:
        self.both(x.unsqueeze(0))
        return super().forward(x)


class Counting(nn.Module):
    """Changes a buffer in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def layers(width: int, count: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), *(nn.Linear(width, width) for _ in range(count - 2)), nn.Linear(width, 4))


def found(model: nn.Module) -> list[tuple[str, float]]:
    return [(part.name, round(part.share, 2)) for part in parts(model, (X,), {})]


def test_the_largest_parts_come_first_and_cover_what_is_in_them() -> None:
    model = Branching(head=nn.Linear(4, 4), encoder=layers(16), norm=nn.LayerNorm(4))
    assert found(model) == [("encoder", 0.84), ("head", 0.11)]


def test_a_part_that_cannot_be_captured_is_searched_too() -> None:
    inner = Branching(first=layers(8), second=nn.Linear(4, 4))
    assert [name for name, _ in found(Branching(inner=inner, head=nn.Linear(4, 4)))] == [
        "inner.first",
        "inner.second",
        "head",
    ]


def test_parts_that_multiply_nothing_or_are_called_in_two_ways_are_left_out() -> None:
    model = Twice(both=layers(16), tables=nn.Sequential(nn.Flatten(), nn.LayerNorm([2, 4])), head=nn.Linear(4, 4))
    assert [name for name, _ in found(model)] == ["head"]


def test_the_number_of_captures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(ATTEMPTS + 1):
        model = Branching(inner=model)
    tried: list[str] = []

    def counted(module: nn.Module, args: tuple[Tensor], kwargs: dict[str, Tensor]) -> object:
        tried.append(type(module).__name__)
        return capture(module, args, kwargs)

    monkeypatch.setattr("lq_plugin.graph.parts.capture", counted)
    assert found(model) == []
    assert tried == ["Branching"] * ATTEMPTS


def test_the_search_changes_neither_the_module_nor_the_random_state() -> None:
    model = Branching(counting=Counting(), drop=nn.Dropout(), encoder=layers(8)).train()
    state, tensors = torch.get_rng_state(), {name: t.clone() for name, t in model.state_dict().items()}
    assert found(model) == [("encoder", 1.0)]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(part.training and "forward" not in vars(part) for part in model.modules())


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_an_error_names_them_once_in_place_of_an_invented_name(method: str) -> None:
    model = Branching(encoder=layers(16), head=nn.Linear(4, 4))
    with pytest.raises(CaptureError) as error:
        assert lq_plugin.quantize(model, [X], method).graph
    message = str(error.value)
    assert "What you can do: choose one of the largest parts that can be captured: target='encoder' (88% of the" in (
        message
    )
    assert "target='head' (12% of the parameters), rewrite this line" in message
    assert message.count("target='encoder'") == 1


def test_a_failed_capture_of_a_dynamic_candidate_is_not_repeated() -> None:
    candidate = lq_plugin.quantize(Branching(encoder=layers(8)), [X], "dynamic")
    errors = []
    for _ in range(2):
        with pytest.raises(CaptureError) as error:
            assert candidate.graph
        errors.append(error.value)
    assert errors[0] is errors[1]


def test_auto_takes_the_whole_where_it_can_be_captured_and_else_its_largest_part() -> None:
    whole = choose(layers(8), (X,), {})
    assert (whole.choice, whole.call) == (Choice(), ((X,), {}))
    taken = choose(Branching(first=nn.Linear(4, 8), encoder=nn.Linear(8, 9)), (X,), {})
    choice, ((x,), _) = taken.choice, taken.call
    assert (choice.target, x.shape) == ("encoder", (2, 8))
    assert taken.graph is not None
    assert isinstance(taken.module, nn.Linear)
    assert "forward of Branching cannot be captured" in choice.reason
    half = Branching(first=nn.Linear(4, 8), encoder=nn.Linear(8, 9)).bfloat16()
    assert choose(half, (X.bfloat16(),), {}).choice == choice
    with pytest.raises(CaptureError, match="target: the forward of Branching cannot be captured"):
        choose(Branching(norm=nn.LayerNorm(4)), (X,), {})
    nothing = choose(Branching(norm=nn.LayerNorm(4)), (X,), {}, else_whole=True)
    assert (nothing.choice, nothing.graph) == (Choice(), None)
