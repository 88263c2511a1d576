"""Layers of other classes become INT8 where they compute what torch's layers do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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
        self.bias = False

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


class Counted(nn.LSTM):
    """Takes lengths, and leaves out sequences of length zero, as forecasting libraries do."""

    def forward(self, x: Tensor, hx: Any = None, *, lengths: Tensor) -> Any:  # type: ignore[override]
        packed = pack_padded_sequence(x, lengths.clamp(min=1), batch_first=self.batch_first, enforce_sorted=False)
        output, states = super().forward(packed, hx)
        padded, _ = pad_packed_sequence(output, batch_first=self.batch_first)
        return padded, tuple(torch.where(lengths[:, None] > 0, state, 0.0) for state in states)


class Halved(nn.GRUCell):
    def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:
        return super().forward(x, hx) / 2


class Reading(nn.GRU):
    def forward(self, x: Tensor, hx: Tensor | None = None) -> Any:  # type: ignore[override]
        return super().forward(x.type_as(self.weight_ih_l0), hx)  # type: ignore[arg-type]


class Direct(nn.GRU):
    def forward(self, x: Tensor, hx: Tensor | None = None) -> Any:  # type: ignore[override]
        return nn.GRU.forward(self, x, hx)


class Starting(nn.GRU):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.start = nn.Parameter(torch.randn(1, 1, outputs))

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, self.start.expand(-1, x.shape[1], -1).contiguous())


class Around(nn.Module):
    def __init__(self, layer: nn.Module, **given: Tensor) -> None:
        super().__init__()
        self.body, self.head, self.given = layer, nn.Linear(8, 2), given

    def forward(self, x: Tensor) -> Tensor:
        output = self.body(x, **self.given)
        head: Tensor = self.head(output[1][0])
        return head


RECURRENT: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "lengths": (lambda: Around(Counted(4, 8, batch_first=True), lengths=torch.tensor([5, 0, 2])), None),
    "a cell": (lambda: nn.Sequential(Halved(4, 8), nn.Linear(8, 2)), None),
    "weights are read": (lambda: Around(Reading(4, 8)), "its weight_ih_l0 is read outside its forward"),
    "called directly": (lambda: Around(Direct(4, 8)), "its forward is never called"),
    "more weights": (lambda: Around(Starting(4, 8)), "Starting overrides the forward of GRU, and holds more"),
}


@pytest.mark.parametrize(("build", "reason"), RECURRENT.values(), ids=RECURRENT)
def test_what_a_recurrent_subclass_inherits_becomes_int8_and_its_own_forward_stays(
    build: Callable[[], nn.Module], reason: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(3, 4) if isinstance(model, nn.Sequential) else torch.randn(3, 5, 4)
    candidate = lq_plugin.quantize(model, [x], DYNAMIC)
    assert isinstance(candidate, DynamicCandidate)
    artifact = lq_plugin.export(candidate, tmp_path, ["torch"])["torch"]
    assert len(artifact.quantized_ops) == (1 if reason else 2)
    assert [str(op["reason"])[: len(reason or "")] for op in artifact.float_ops] == ([reason] if reason else [])
    loaded, sqnr = lq_plugin.load(artifact.path, factory=build), SignalToQuantizationNoise()
    assert any("weight_hh" in name for name, _ in loaded.named_parameters()) == bool(reason)
    again = copy.deepcopy(loaded).float()
    with torch.no_grad():
        sqnr.update(loaded(x), model(x))
        assert torch.equal(again(x), loaded(x))
    assert sqnr.compute() > 30
    learnt = weight_rounding(candidate, [[x]], seed=0).module.state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, learnt[name])}
    assert len(changed) == 1  # the head's


class Offset(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids + 1)


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell = Offset(9, 8), Halved(8, 8)
        self.again = self.cell

    def forward(self, ids: Tensor) -> Tensor:
        return self.again(self.table(ids), self.cell(self.table(ids + 1)))  # type: ignore[no-any-return]


def test_shared_layers_and_tables_keep_their_own_forward(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Twice().eval(), torch.arange(6)
    scheme = Scheme("dynamic", algorithms=(), embeddings=True)
    artifact = lq_plugin.export(lq_plugin.quantize(model, [ids], scheme), tmp_path, ["torch"])["torch"]
    assert [(op["name"], op["op"]) for op in artifact.quantized_ops] == [("table", "embedding"), ("cell", "gru_cell")]
    loaded, sqnr = lq_plugin.load(artifact.path, factory=Twice), SignalToQuantizationNoise()
    assert loaded.cell is loaded.again
    with torch.no_grad():
        sqnr.update(loaded(ids), model(ids))
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
