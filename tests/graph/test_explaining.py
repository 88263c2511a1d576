"""What is said of a forward that cannot be captured: inputs by the names that dynamic_dims takes, and ways out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Tiny, fit
from torch import Tensor, nn

import lq_plugin
from lq_plugin import DynamicQuantization, StaticQuantization
from lq_plugin.errors import CaptureError, ConfigError
from lq_plugin.graph.capture import capture

IDS = torch.ones(3, 5, 4)


class Layer(nn.Module):
    def __init__(self, part: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.part = part

    def forward(self, x: Tensor, batch: dict[str, Any] | None = None) -> Tensor:
        return self.part(self.layer(x))


class Added(Layer):
    """Two inputs of the same size."""

    def forward(self, x: Tensor, batch: dict[str, Any] | None = None) -> Tensor:
        assert batch is not None
        return self.layer(x) + batch["ids"][0]


class Shaped(Layer):
    """Takes no other batch than that of three."""

    def forward(self, x: Tensor, batch: dict[str, Any] | None = None) -> Tensor:
        return self.layer(x).view(3, 4)


class Written(Layer):
    """Fails inside the standard library."""

    def forward(self, x: Tensor, batch: dict[str, Any] | None = None) -> Tensor:
        return self.layer(x) + len(json.dumps(x))


def said(model: nn.Module, *args: Any, **dynamic_dims: list[int]) -> str:
    with pytest.raises(CaptureError) as error:
        capture(model, args, {}, {name.replace("_", "."): dims for name, dims in dynamic_dims.items()})
    message = str(error.value)
    assert not [word for word in ("L[", "inputs[", "'tensors'", "args_0", "tensors_0") if word in message]
    return message


def test_a_dimension_that_the_forward_fixes_is_named_as_in_dynamic_dims() -> None:
    message = said(Added(), IDS, {"ids": [IDS]}, batch_ids_0=[1])
    assert message == (
        "dynamic_dims: the forward of Added fixes batch.ids.0.shape[1] to 5. Leave it out of "
        "dynamic_dims; or, where another input must have the same size, make that dimension dynamic too."
    )
    both = {"x": [1], "batch.ids.0": [1]}
    shapes = [part["shape"] for _, part in capture(Added(), [IDS, {"ids": [IDS]}], {}, both).signature.tensors()]
    assert shapes == [[None, None, 4]] * 2


def test_a_dynamic_dimension_of_one_is_named_as_in_dynamic_dims() -> None:
    message = said(Added(), IDS[:, :1], {"ids": [IDS[:, :1]]}, x=[1], batch_ids_0=[1])
    assert "shape[1] is 1 in the first batch" in message
    assert "Give a first batch in which it is 2 or more" in message


def test_a_size_is_named_by_its_input() -> None:
    message = said(Shaped(), torch.ones(2, 2, 4))
    assert "shape '[3, 4]' is invalid for input of size 8*x.shape[0]" in message


def test_an_argument_in_containers_is_named_as_in_dynamic_dims() -> None:
    with pytest.raises(CaptureError, match=r"^argument batch\.ids\.0: a graph can neither take nor return a set"):
        capture(Added(), [IDS, {"ids": [{1}]}])
    signature = capture(Added(), [IDS, {"ids": [IDS]}]).signature
    assert [name for name, _ in signature.tensors()] == ["x", "batch.ids.0"]
    with pytest.raises(lq_plugin.errors.ArtifactError, match=r"^argument batch\.ids\.0: expected float32 of shape"):
        signature.flatten([IDS, {"ids": [IDS[:, :2]]}], {})


def test_what_fails_in_the_standard_library_is_named_by_the_line_that_calls_it() -> None:
    message = said(Written(), torch.ones(2, 4))
    assert f"{__file__}:" in message
    assert "return self.layer(x) + len(json.dumps(x))" in message


def scripted(how: str) -> Any:
    part = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    return torch.jit.script(part) if how == "script" else torch.jit.trace(part, torch.ones(2, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_part_is_named_with_what_to_do(how: str) -> None:
    message = said(Layer(scripted(how)), torch.ones(3, 4))
    assert "It holds 'part', a TorchScript module" in message
    assert "replace it by the module that it was scripted from, and script that after training" in message
    candidate = lq_plugin.quantize(Layer(scripted(how)), [torch.ones(3, 4)], "dynamic")
    assert isinstance(candidate, lq_plugin.DynamicCandidate)
    assert [op.name for op in candidate.survey.coverage.quantized] == ["layer"]  # as the message promises


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("method", ["static", "dynamic"])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_model_is_refused_with_what_to_do(how: str, method: str) -> None:
    with pytest.raises(ConfigError, match=r"target: it is a TorchScript module .* Give the nn.Module that it was made"):
        lq_plugin.quantize(scripted(how), [torch.ones(3, 4)], method)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("callback", [StaticQuantization, DynamicQuantization])
def test_a_torchscript_target_is_refused_before_training(callback: Any, tmp_path: Path) -> None:
    model = Tiny()
    model.net = torch.jit.script(model.net)  # type: ignore[assignment]
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ConfigError, match="target: it is a TorchScript module"):
        fit(tmp_path, model, callback(target="net"))
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
