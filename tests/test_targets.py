"""The target is found by its path, and its forward can be replaced and given back in any order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lq_plugin.errors import ConfigError
from lq_plugin.targets import never_called, replaced_forward, resolve_target


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2))
        self.plain = nn.Identity()


def test_a_target_is_found_by_its_path() -> None:
    model = Model()
    assert resolve_target(model, None) is model
    assert resolve_target(model, "net.0") is model.net[0]
    with pytest.raises(ConfigError, match=r"target: 'nte' is unknown\. Did you mean 'net'"):
        resolve_target(model, "nte")


@pytest.mark.parametrize(("target", "named"), [(None, "'Model'"), ("plain", "'plain'")])
def test_a_target_that_is_never_called_is_named_with_what_could_be_chosen(target: str | None, named: str) -> None:
    said = never_called(Model(), target, "validation_step", "Callback")
    assert f"the forward of {named} is never called in validation_step" in said
    assert "one of ['net']: Callback(target='…')" in said  # nothing in the other one can be quantized


def plus(number: float) -> Callable[..., Tensor]:
    return lambda original, x: original(x) + number


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the instance"])
def test_forwards_are_replaced_and_given_back_in_any_order(order: tuple[int, ...], own: bool) -> None:
    module = nn.Identity()
    if own:
        module.forward = lambda x: 2 * x  # type: ignore[method-assign]
    before, x = module.__dict__.get("forward"), torch.ones(1)
    replaced = [replaced_forward(module, plus(10.0**n)) for n in range(3)]
    for one in replaced:
        one.__enter__()
    expected = 1.0 + own + 111.0
    assert module(x).item() == expected
    for index in order:
        replaced[index].__exit__(None, None, None)
        expected -= 10.0**index
        assert module(x).item() == expected
    assert module.__dict__.get("forward") is before
