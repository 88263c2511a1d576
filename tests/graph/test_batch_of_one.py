"""Batches of one, and numbers that follow from the batch: right in every format, or fixed and said so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin.errors import ArtifactError
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.graph.capture import capture
from lq_plugin.graph.signature import Signature
from lq_plugin.scheme import Scheme


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)


class Sized(Layer):
    """Says how many samples it was given, and how many numbers."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"samples": x.shape[0], "out": self.layer(x), "sizes": (4 * x.shape[0] + 1, 7), "last": x.shape[1]}


class OneAlone(Layer):
    """Takes no other batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(2, 2).view(1, 4))


class Branching(Layer):
    """Does something else with a batch of one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * 3 if x.shape[0] == 1 else self.layer(x)


class Related(Layer):
    """Its second input has one sample for each four numbers of the first, so not both can be doubled."""

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        return self.layer(x + offset.view(1, 1).expand(x.shape[0], 4))


class Counting(Layer):
    """Draws random numbers and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.layer(x) + torch.rand_like(x)


def exported(model: nn.Module, batches: list[Any], method: str, folder: Path) -> dict[str, nn.Module]:
    """The artifacts of a model in every format that a method has, loaded."""
    scheme = Scheme(method, algorithms=())
    artifacts = lq_plugin.export(lq_plugin.quantize(model, batches, scheme), folder)
    return {
        name: lq_plugin.load(artifact.path, factory=type(model) if name == "torch" else None)
        for name, artifact in artifacts.items()
    }


def decibels(given: Tensor, wanted: Tensor) -> float:
    metric = SignalToQuantizationNoise()
    metric.update(given, wanted)
    return float(metric.compute())


@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize("captured", [1, 3])
def test_a_size_in_the_output_is_an_int_that_follows_the_batch(method: str, captured: int, tmp_path: Path) -> None:
    model = Sized().eval()
    modules = exported(model, [torch.randn(captured, 4) for _ in range(16)], method, tmp_path)
    assert modules.keys() == ({"onnx", "openvino", "pt2"} if method == "static" else {"onnx", "openvino", "torch"})
    for module in modules.values():
        for batch in (1, 3, 5):
            x = 0.3 * torch.randn(batch, 4)
            given, wanted = module(x), model(x)
            assert given.pop("out").shape == wanted.pop("out").shape
            assert given == wanted
            assert list(map(type, given["sizes"])) == [int, int]
            assert type(given["samples"]) is type(given["last"]) is int


def test_a_size_survives_the_signature_in_json() -> None:
    signature = capture(Sized(), [torch.ones(3, 4)]).signature
    assert Signature.from_json(signature.to_json()) == signature
    assert signature.output["dict"][0] == ["samples", {"int": 0}]


@pytest.mark.parametrize("broken", [{"int": -1}, {"int": True}, {"int": 0.0}, {"int": 0, "dtype": "int64"}])
def test_a_malformed_size_is_refused(broken: dict[str, Any]) -> None:
    content = capture(Sized(), [torch.ones(3, 4)]).signature.to_json()
    with pytest.raises(ValueError, match="the signature is malformed"):
        Signature.from_json(content | {"output": broken})


def test_a_size_is_no_kind_of_input() -> None:
    content = capture(Sized(), [torch.ones(3, 4)]).signature.to_json()
    content["parameters"][0]["given"] = {"int": 0}
    with pytest.raises(ValueError, match="the signature is malformed"):
        Signature.from_json(content)


@pytest.mark.parametrize(
    ("model", "rest", "reason"),
    [
        (OneAlone, [], "cannot be captured with a batch of two"),
        (Branching, [], "computes something else for larger batches"),
        (Related, [torch.ones(1)], "cannot be captured with a batch of two"),
    ],
)
def test_a_model_for_batches_of_one_alone_is_exported_for_them(
    model: Callable[[], nn.Module],
    rest: list[Tensor],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = model().eval()
    modules = exported(module, [(torch.randn(1, 4), *rest) for _ in range(64)], "static", tmp_path)
    assert modules.keys() == {"onnx", "openvino", "pt2"}
    said = capsys.readouterr()
    assert f"takes only batches of one, like its example: its forward {reason}" in " ".join(
        (said.out + said.err).split()
    )
    x = 0.5 * torch.randn(1, 4)
    for loaded in modules.values():
        assert decibels(loaded(x, *rest), module(x, *rest)) > 20
        with pytest.raises(ArtifactError, match=r"argument x: expected float32 of shape \[1, 4\], got .*\[3, 4\]"):
            loaded(torch.randn(3, 4), *rest)


def test_the_graph_of_one_has_no_batch() -> None:
    graph = capture(OneAlone(), [torch.ones(1, 4)])
    assert ["takes only batches of one" in text for text in graph.notes] == [True]
    assert (graph.batch_size, graph.batch_dims, graph.example[0].shape) == (1, ((),), (1, 4))
    assert graph.resized(5)[0].shape == (1, 4)


class Caching(Layer):
    """Returns an object that no graph can return, or a tensor in its place."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.alone = alone

    def forward(self, x: Tensor) -> dict[str, Any]:
        own = x if self.alone and x.shape[0] == 1 else object()
        return {"out": self.layer(x), "caches": (own, x.shape[0])}


@pytest.mark.parametrize(("alone", "batch"), [(False, None), (True, 1)])
def test_what_a_graph_cannot_return_differs_where_a_tensor_stands_in_its_place(alone: bool, batch: int | None) -> None:
    assert capture(Caching(alone), [torch.ones(1, 4)]).signature.tensors()[0][1]["shape"] == [batch, 4]


def test_a_model_that_takes_neither_batch_says_why_it_does_not_take_the_doubled_one() -> None:
    class Values(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(lq_plugin.errors.CaptureError, match=r"if x\.sum\(\) > 0"):
        capture(Values(), [torch.ones(1, 4)])


def test_a_random_forward_keeps_its_dynamic_batch_and_is_not_called_on_the_live_module() -> None:
    model = Counting().eval()
    state = torch.get_rng_state()
    graph = capture(model, [torch.ones(1, 4)])
    assert graph.batch_size == 2
    assert graph.signature.tensors()[0][1]["shape"] == [None, 4]
    assert model.calls == 0
    assert torch.equal(torch.get_rng_state(), state)
