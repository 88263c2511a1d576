"""Checks of data, and numbers that come from data, in a forward.

PYTEST_DONT_REWRITE: pytest compiles an assert to other bytecode than Python does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.errors import CaptureError
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.graph.capture import capture


class Checked(nn.Module):
    """A linear layer behind a check."""

    def __init__(self, check: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.check, self.layer = check, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.layer(x)


def asserted(x: Tensor) -> None:
    assert torch.isfinite(x).all() and (x < 100).all(), "out of range"  # noqa: PT018


def asserted_number(x: Tensor) -> None:
    assert x.max().item() < 100


def asserted_of_parts(x: Tensor) -> None:
    assert all((part < 100).all() for part in x.unbind(1))


def raised(x: Tensor) -> None:
    if not torch.isfinite(x).all():
        number = torch.isnan(x).sum()
        raise ValueError(f"{number} values are nan")


def raised_of_number(x: Tensor) -> None:
    if (x > 100).any().item():
        raise ValueError("too large")


def of_a_distribution(x: Tensor) -> None:
    torch.distributions.Normal(x, torch.ones_like(x), validate_args=True)


@pytest.mark.parametrize(
    "check", [of_a_distribution, asserted, asserted_number, asserted_of_parts, raised, raised_of_number]
)
def test_a_check_of_data_is_left_out(check: Callable[[Tensor], object], capsys: pytest.CaptureFixture[str]) -> None:
    module, x = Checked(check), torch.randn(3, 4)
    captured = capture(module, [x])
    graph = captured.module
    names = [node.name for node in graph.graph.nodes if node.op == "call_function"]
    assert names == ["linear"] or check is of_a_distribution
    assert torch.equal(graph(x)[0], module(x))
    said = "".join(capsys.readouterr())
    assert check is of_a_distribution or f"the check of data in {__file__}:" in said
    assert all(text.startswith("the check of data in ") for text in captured.notes)
    assert len({*captured.notes}) == len(captured.notes) > 0
    with pytest.raises((AssertionError, ValueError)):
        module(1000 * torch.full_like(x, torch.nan if check in (raised, of_a_distribution) else 1.0))


def test_a_branch_is_no_check() -> None:
    def branch(x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x

    with pytest.raises(CaptureError, match="data-dependent"):
        capture(Checked(branch), [torch.randn(3, 4)])


def caught(x: Tensor) -> Tensor:
    try:
        if (x > 10).any():
            raise ValueError
    except ValueError:
        return x / 10
    return x


def suppressed(x: Tensor) -> Tensor:
    with contextlib.suppress(ValueError):
        if (x > 10).any():
            raise ValueError
        return x
    return x / 10


@pytest.mark.parametrize("branch", [caught, suppressed])
def test_an_error_that_the_forward_catches_is_no_check(branch: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError, match="data-dependent"):
        capture(Checked(branch), [torch.randn(3, 4)])


class Measured(nn.Module):
    """Holds a class of this package, whose code must not be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.metric = nn.Linear(4, 2), SignalToQuantizationNoise()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(len(x), 4))


def test_a_module_with_a_class_of_ours_is_captured() -> None:
    assert capture(Measured(), [torch.randn(3, 2, 2)]).signature.tensors()[0][1]["shape"] == [None, 2, 2]


@pytest.mark.parametrize("check", [asserted, caught])
def test_nothing_of_torch_stays_replaced(check: Callable[[Tensor], object]) -> None:
    with contextlib.suppress(CaptureError):
        capture(Checked(check), [torch.randn(3, 4)])
    assert "__bool__" not in vars(Tensor)
    assert torch.SymBool.__bool__.__module__ == "torch"
    assert not {"int", "len"} & globals().keys()


def test_what_is_left_out_is_said_once_in_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        candidate = lq_plugin.quantize(Checked(raised), [torch.randn(3, 4)], Scheme("dynamic", algorithms=[]))
        assert candidate.notes == ()  # it is captured when a format needs it
        assert len(candidate.graph.notes) == 1
        assert candidate.notes == candidate.graph.notes
        capture(candidate.module, candidate.example[0])
        assert "".join(capsys.readouterr()).count("is left out of the graph") == 1


class Measuring(nn.Module):
    """Makes a metric in its forward, whose default state is a copied tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        MeanSquaredError()
        return self.layer(x)


def test_a_tensor_is_copied_while_a_forward_is_captured() -> None:
    module, x = Measuring(), torch.randn(3, 4)
    assert torch.equal(capture(module, [x]).module(x)[0], module(x))


class Masked(nn.Module):
    """Cuts a batch to its longest sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        longest = int(lengths.max())
        mask = torch.arange(longest)[None] < lengths[:, None]
        return self.layer(x[:, :longest]) * mask[..., None]


class Cut(nn.Module):
    """Fixes its batch, or branches on data, without ``int``."""

    def __init__(self, branching: bool) -> None:
        super().__init__()
        self.branching, self.layer = branching, nn.Linear(4, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.branching and x.sum() > 1e6:
            return x
        return self.layer(x.view(3, 5, 4)) * (lengths[:, None, None] > 2)


@pytest.mark.parametrize(
    ("model", "times"), [(Masked, 2), (lambda: Cut(branching=False), 1), (lambda: Cut(branching=True), 1)]
)
def test_a_forward_is_exported_again_only_where_int_may_be_why(
    model: Callable[[], nn.Module], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = Mock(side_effect=torch.export.export)
    monkeypatch.setattr(torch.export, "export", exported)
    with contextlib.suppress(CaptureError):
        capture(model(), [torch.randn(3, 5, 4), torch.tensor([3, 4, 2])])
    assert exported.call_count == times
    assert "__int__" not in vars(Tensor)


def test_a_number_from_data_is_computed_by_the_graph() -> None:
    module, x = Masked(), torch.randn(3, 5, 4)
    graph = capture(module, [x, torch.tensor([3, 4, 2])]).module
    for lengths in (torch.tensor([1, 2, 2]), torch.tensor([5, 3, 1])):
        assert torch.equal(graph(x, lengths)[0], module(x, lengths))
    assert "int" not in globals()


class Counted(nn.Module):
    def __init__(self, count: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.count, self.layer = count, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(self.count(x), 8))


@pytest.mark.parametrize("count", [lambda x: len(x), lambda x: int(x.shape[0])])
def test_a_counted_batch_stays_dynamic(count: Callable[[Tensor], int]) -> None:
    module, x = Counted(count), torch.randn(3, 2, 4)
    graph = capture(module, [x])
    assert graph.signature.tensors()[0][1]["shape"] == [None, 2, 4]
    assert torch.equal(graph.module(x[:2])[0], module(x[:2]))


class Resized(nn.Module):
    """Computes a size, or something else, from the size of an image."""

    def __init__(self, number: Callable[[Any], Any], use: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.number, self.use, self.layer = number, use, nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.layer(x), self.number(x.shape[2]))


def to_size(y: Tensor, size: Any) -> Tensor:
    return nn.functional.interpolate(y, size=(size, y.shape[3]))


@pytest.mark.parametrize(
    "number",
    [
        lambda n: int(n / 2),
        lambda n: int(n * 0.6),
        lambda n: int(n // 2),
        lambda n: int(n // 2.0),
        lambda n: int(round(n * 0.6)),  # noqa: RUF046
        lambda n: int(math.ceil(n / 3)),  # noqa: RUF046
        lambda n: math.trunc(n / 3),
        lambda n: round(n / 3),
        lambda n: next(map(int, [n / 3])),
    ],
)
def test_a_size_that_is_rounded_stays_dynamic(number: Callable[[Any], Any]) -> None:
    module, x = Resized(number, to_size).eval(), torch.randn(2, 1, 9, 11)
    graph = capture(module, [x], dynamic_dims={"x": [2, 3]}).module
    for size in (9, 8, 7, 13):
        given = torch.randn(3, 1, size, size + 1)
        assert torch.equal(graph(given)[0], module(given))


FIXING = [
    (lambda n: range(n // 2), lambda y, numbers: torch.stack([y[:, :, number] for number in numbers])),
    (lambda n: math.sqrt(n * 2), lambda y, number: y / number),
    (lambda n: float(n / 2), lambda y, number: y / number),
    (lambda n: n // 3, lambda y, number: y.chunk(number, dim=2)[0]),
]


@pytest.mark.parametrize(("number", "use"), FIXING)
def test_a_size_that_becomes_a_plain_number_cannot_be_dynamic(number: Any, use: Any) -> None:
    with pytest.raises(CaptureError, match=r"the forward of Resized fixes x.shape\[2\] to 9. Leave it out"):
        capture(Resized(number, use).eval(), [torch.randn(2, 1, 9, 11)], dynamic_dims={"x": [2, 3]})


class OfBatch(nn.Module):
    """Divides by half of its batch, in a way that no graph computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) / math.sqrt(x.shape[0] / 2)


def test_a_batch_that_becomes_a_plain_number_is_fixed() -> None:
    assert capture(OfBatch(), [torch.randn(6, 4)]).signature.tensors()[0][1]["shape"] == [6, 4]
