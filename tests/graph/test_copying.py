"""A detached copy computes with its own weights whatever a module keeps, and the original notices nothing."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny, trainer
from torch import Tensor, nn

from lq_plugin.errors import CaptureError
from lq_plugin.graph.copying import detached_copy, module_names
from lq_plugin.targets import replaced_forward

X = torch.tensor([[1.0, -2.0]])


class Layer(nn.Module):
    """One linear layer, and whatever a test puts beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        self.kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def doubled(x: Tensor) -> Tensor:
    return 2 * x


def nested(model: Layer) -> Callable[[Tensor], Tensor]:
    def inner(x: Tensor) -> Tensor:
        return model.layer(x)

    return lambda x: inner(x)


def recursive(model: Layer) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor, depth: int = 3) -> Tensor:
        return call(x, depth - 1) if depth else model.layer(x)

    return call


def compiled(function: Any) -> Any:
    return torch.compile(function, backend="eager")


# What a module may keep that computes with its weights, and how it is called.
KEPT: dict[str, tuple[Callable[[Layer], Any], Callable[[Any, Tensor], Tensor]]] = {
    "lambda": (lambda m: lambda x: m.layer(x), lambda kept, x: kept(x)),
    "lambda in a list": (lambda m: [lambda x: m.layer(x)], lambda kept, x: kept[0](x)),
    "lambda in a tuple": (lambda m: (lambda x: m.layer(x),), lambda kept, x: kept[0](x)),
    "lambda in dicts": (lambda m: {"a": OrderedDict(b=lambda x: m.layer(x))}, lambda kept, x: kept["a"]["b"](x)),
    "default": (lambda m: lambda x, own=m: own.layer(x), lambda kept, x: kept(x)),
    "keyword default": (lambda m: lambda x, *, own=m.layer: own(x), lambda kept, x: kept(x)),
    "partial of a lambda": (lambda m: functools.partial(lambda n, x: n * m.layer(x), 2.0), lambda kept, x: kept(x)),
    "partial of a method": (lambda m: functools.partial(m.layer.forward), lambda kept, x: kept(x)),
    "partial in a lambda": (lambda m: nested_in(functools.partial(m.layer)), lambda kept, x: kept(x)),
    "bound method": (lambda m: m.layer.forward, lambda kept, x: kept(x)),
    "bound method in a lambda": (lambda m: nested_in(m.layer.forward), lambda kept, x: kept(x)),
    "weight in a lambda": (lambda m: nested_in(functools.partial(torch.mm, mat2=m.layer.weight)), lambda k, x: k(x)),
    "function in a function": (nested, lambda kept, x: kept(x)),
    "function that calls itself": (recursive, lambda kept, x: kept(x)),
    "compiled lambda": (lambda m: compiled(lambda x: m.layer(x)), lambda kept, x: kept(x)),
    "compiled method of a child": (lambda m: compiled(m.layer.forward), lambda kept, x: kept(x)),
    "compiled child": (lambda m: compiled(m.layer), lambda kept, x: kept(x)),
    "compiled child in a list": (lambda m: [compiled(m.layer)], lambda kept, x: kept[0](x)),
}


def nested_in(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x)


@pytest.mark.parametrize(("kept", "call"), KEPT.values(), ids=KEPT)
def test_what_a_copy_keeps_computes_with_the_copys_weights(
    kept: Callable[[Layer], Any], call: Callable[[Any, Tensor], Tensor]
) -> None:
    model = Layer()
    model.kept = kept(model)
    before = call(model.kept, X)
    copied = detached_copy(model)
    assert torch.equal(call(copied.kept, X), before)
    with torch.no_grad():
        copied.get_submodule("layer").get_parameter("weight").zero_()
    assert not call(copied.kept, X).any()
    assert torch.equal(call(model.kept, X), before)


@pytest.mark.parametrize("before", [False, True])
def test_a_hook_computes_with_the_copys_weights(before: bool) -> None:
    model = Layer()
    if before:
        model.register_forward_pre_hook(lambda module, args: (model.layer(args[0]),))
    else:
        model.register_forward_hook(lambda module, args, output: model.layer(output))
    original = model(X)
    copied = detached_copy(model)
    assert torch.equal(copied(X), original)
    with torch.no_grad():
        copied.get_submodule("layer").get_parameter("weight").copy_(2 * torch.eye(2))
    assert torch.equal(copied(X), 4 * X)
    assert torch.equal(model(X), original)


def test_a_compiled_function_of_no_module_is_kept() -> None:
    model = Layer()
    model.kept = compiled(doubled)
    assert detached_copy(model).kept is doubled


def test_functions_of_the_copy_share_what_those_of_the_original_share() -> None:
    model, count = Layer(), 0

    def call(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return model.layer(x)

    model.kept = [call, lambda: (model, count)[1]]
    copied = detached_copy(model)
    copied.kept[0](X)
    copied.kept[0](X)
    assert (copied.kept[1](), model.kept[1]()) == (2, 0)


def test_functions_that_know_nothing_of_the_module_are_the_same() -> None:
    model = Layer()
    model.kept = [nested_in(doubled), functools.partial(doubled)]
    assert detached_copy(model).kept[0] is model.kept[0]


def test_the_trainer_stays_with_the_original(tmp_path: Path) -> None:
    model = Tiny()
    model.trainer = trainer(tmp_path)
    copied: Any = detached_copy(model)
    assert copied._trainer is None
    assert model.trainer is not None


def test_logged_metrics_of_a_copy_are_its_own() -> None:
    model = Tiny()
    model._metric_attributes = {id(model.accuracy): "accuracy"}  # as self.log leaves it
    copied: Any = detached_copy(model)
    assert copied._metric_attributes is None
    assert copied.accuracy is not model.accuracy
    copied.accuracy.update(torch.eye(3), torch.arange(3))
    assert not model.accuracy.tp.any()


@pytest.mark.parametrize("in_inference", [False, True])
def test_a_copy_is_in_eval_mode_with_tensors_of_its_own(in_inference: bool) -> None:
    model = Tiny()
    model.net[0].eval()
    modes = {name: part.training for name, part in model.named_modules()}
    with torch.inference_mode(in_inference):
        copied = detached_copy(model)
    assert not any(part.training for part in copied.modules())
    assert {name: part.training for name, part in model.named_modules()} == modes
    for own, original in zip(copied.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(own, original)
        assert own.data_ptr() != original.data_ptr()
        assert not own.is_inference()


def test_tensors_are_the_very_same_where_they_are_shared() -> None:
    model = Tiny()
    copied = detached_copy(model, share_tensors=True)
    for kind in ("named_parameters", "named_buffers"):
        wanted = dict(getattr(model, kind)())
        assert wanted
        assert all(tensor is wanted[name] for name, tensor in getattr(copied, kind)())


def test_a_module_that_is_shared_is_shared_in_the_copy() -> None:
    layer = nn.Linear(2, 2)
    copied: Any = detached_copy(nn.Sequential(layer, layer))
    assert copied[0] is copied[1]
    assert copied[0] is not layer


class CompiledForward(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.forward = compiled(self.forward)  # type: ignore[method-assign]


def compiled_in_place() -> nn.Module:
    model = Layer()
    model.compile(backend="eager")
    return model


def compiled_part() -> nn.Module:
    model = Layer()
    model.layer = compiled(model.layer)
    return model


@pytest.mark.parametrize("make", [CompiledForward, compiled_in_place, compiled_part, lambda: compiled(Layer())])
def test_a_copy_is_not_compiled(make: Callable[[], nn.Module]) -> None:
    model = make()
    copied = detached_copy(model)
    assert type(copied) in (Layer, CompiledForward)
    assert "forward" not in copied.__dict__
    assert copied._compiled_call_impl is None
    assert module_names(model) == [name for name, _ in copied.named_modules() if name] == ["layer"]
    before = model(X)
    assert torch.equal(copied(X), before)
    with torch.no_grad():
        next(copied.parameters()).zero_()
    assert not copied(X).any()
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the instance"])
def test_a_copy_made_while_somebody_listens_has_the_forward_from_before(own: bool) -> None:
    model, heard = Layer(), []
    if own:
        model.forward = lambda x: 2 * model.layer(x)  # type: ignore[method-assign]
    expected = model(X)

    def listen(original: Any, x: Tensor) -> Tensor:
        heard.append(x)
        return original(x)  # type: ignore[no-any-return]

    with replaced_forward(model, listen), replaced_forward(model, listen):
        copied = detached_copy(model)
        assert torch.equal(copied(X), expected)
        assert heard == []
    with torch.no_grad():
        next(copied.parameters()).zero_()
    assert not copied(X).any()
    assert ("forward" in copied.__dict__) is own


def test_what_cannot_be_copied_is_named_with_what_to_do() -> None:
    model = Layer()
    model.kept = threading.Lock()
    with pytest.raises(CaptureError, match=r"module: Layer cannot be copied \(cannot pickle '_thread\.lock' object\)"):
        detached_copy(model)
