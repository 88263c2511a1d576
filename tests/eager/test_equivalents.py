"""Layers of other classes become INT8 where they compute what torch's layers do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import lq_plugin
from lq_plugin import DynamicCandidate, Scheme
from lq_plugin.algorithms.weight_rounding import weight_rounding
from lq_plugin.errors import ArtifactError
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise

DYNAMIC = Scheme("dynamic", algorithms=())


class Rewritten(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias).view(*x.shape[:-1], -1)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias) * 1.001


class Limited(nn.Linear):
    """Differs from a linear layer on larger inputs only."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias).clamp(-20, 20)


class Adapted(nn.Linear):
    """Has more to learn, which computes nothing before it is trained."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(1, inputs)), nn.Parameter(torch.zeros(outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class Turned(nn.Module):
    """As GPT-2's ``Conv1D``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class WithoutBias(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Distances(WithoutBias):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.weight)


class Positive(WithoutBias):
    def forward(self, x: Tensor) -> Tensor:
        assert x.abs().max() < 9
        return super().forward(x)


LINEAR: dict[str, tuple[Callable[[int, int], nn.Module], str | None]] = {
    "rewritten": (Rewritten, None),
    "turned": (Turned, None),
    "without bias": (WithoutBias, None),
    "scaled": (Scaled, "Scaled overrides the forward of Linear, and computes something else"),
    "limited": (Limited, "Limited overrides the forward of Linear, and computes something else"),
    "adapted": (Adapted, "Adapted overrides the forward of Linear, and computes something else"),
    "distances": (Distances, "no dynamic INT8 form of this layer"),
    "asking": (Positive, "no dynamic INT8 form of this layer"),
}


@pytest.mark.parametrize("outputs", [6, 4])
@pytest.mark.parametrize(("layer", "reason"), LINEAR.values(), ids=LINEAR)
def test_a_layer_that_computes_what_a_linear_one_does_becomes_int8(
    layer: Callable[[int, int], nn.Module], reason: str | None, outputs: int, tmp_path: Path
) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), layer(4, outputs))

    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(3, 5, 4)
    artifact = lq_plugin.export(lq_plugin.quantize(model, [x], DYNAMIC), tmp_path, ["torch"])["torch"]
    assert [(op["name"], op["op"]) for op in artifact.quantized_ops][1:] == ([] if reason else [("1", "linear")])
    assert [op["reason"] for op in artifact.float_ops] == ([reason] if reason else [])
    loaded, sqnr = lq_plugin.load(artifact.path, factory=build), SignalToQuantizationNoise()
    with torch.no_grad():
        sqnr.update(loaded(x), model(x))
    assert sqnr.compute() > 30


def test_a_turned_layer_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    model = nn.Sequential(Turned(4, 6))
    made = lq_plugin.export(lq_plugin.quantize(model, [torch.randn(3, 4)], DYNAMIC), tmp_path, ["torch"])["torch"]
    for factory in (lambda: nn.Sequential(Turned(4, 7)), lambda: nn.Sequential(nn.Embedding(6, 4))):
        with pytest.raises(ArtifactError, match=r"'0' of Sequential is .*, but a linear with .* was exported"):
            lq_plugin.load(made.path, factory=factory)


def test_layers_of_other_classes_keep_their_weights_where_rounding_is_learnt() -> None:
    torch.manual_seed(0)
    model, batches = nn.Sequential(Turned(4, 4), nn.Linear(4, 4)).eval(), list(torch.randn(8, 8, 4))
    candidate = lq_plugin.quantize(model, batches, DYNAMIC)
    assert isinstance(candidate, DynamicCandidate)
    learnt = weight_rounding(candidate, [[batch] for batch in batches], seed=0).module.state_dict()
    kept = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, learnt[name])]
    assert kept == ["0.weight", "0.bias", "1.bias"]
