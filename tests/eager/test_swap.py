"""Which layers become INT8, why the others do not, and what a module with INT8 layers keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.eager import swap
from lq_plugin.errors import CaptureError, ConfigError, UnsupportedError
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise

DYNAMIC = Scheme("dynamic", algorithms=())


class Inherited(nn.Linear):
    """A subclass that computes what its base does."""


class Overriding(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 2


class OwnLstm(nn.LSTM):
    """Inherits its forward."""


def hooked() -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *_: None)
    return layer


class First(nn.Module):
    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0]


CASES: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "inherited": (lambda: Inherited(4, 4), None),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), None),
    "own lstm": (lambda: nn.Sequential(OwnLstm(4, 4), First()), None),
    "overriding": (lambda: Overriding(4, 4), "Overriding overrides the forward of Linear"),
    "hooked": (hooked, "has forward hooks"),
    "rnn": (lambda: nn.Sequential(nn.RNN(4, 4), First()), "torch has no INT8 kernel for nn.RNN"),
    "projection": (
        lambda: nn.Sequential(nn.LSTM(4, 8, proj_size=4), First()),
        "torch has no INT8 kernel for proj_size",
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("build", "reason"), CASES.values(), ids=CASES)
def test_what_becomes_int8_and_why_the_rest_does_not(
    build: Callable[[], nn.Module], reason: str | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), build()).eval(), torch.randn(3, 5, 4)
    artifact = lq_plugin.export(lq_plugin.quantize(model, [x], DYNAMIC), tmp_path, ["torch"])["torch"]
    assert len(artifact.quantized_ops) == (1 if reason else 2)
    reasons = [op["reason"] for op in artifact.float_ops]
    assert reasons == [] if reason is None else any(reason in found for found in reasons)
    loaded, sqnr = lq_plugin.load(artifact.path, factory=lambda: nn.Sequential(nn.Linear(4, 4), build())), _sqnr()
    with torch.no_grad():
        sqnr.update(loaded(x), model(x))
    assert sqnr.compute() > 25


def _sqnr() -> SignalToQuantizationNoise:
    return SignalToQuantizationNoise()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_is_quantized_only_where_the_kernel_is_right(mode: str) -> None:
    model = nn.Sequential(nn.EmbeddingBag(10, 4, mode=mode), nn.Linear(4, 2)).eval()
    found = swap.survey(model, ((torch.arange(6).view(2, 3),), {}), Scheme("dynamic", embeddings=True))
    assert [layer.kind for layer in found.chosen] == ["embedding_bag", "linear"][mode != "sum" :]
    assert [op.reason for op in found.coverage.float_ops] == (
        [] if mode == "sum" else [f"torch's INT8 kernel sums where mode={mode!r}"]
    )


def test_embeddings_are_quantized_where_asked() -> None:
    model, call = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)), ((torch.arange(6),), {})
    assert [op.reason for op in swap.survey(model, call, DYNAMIC).coverage.float_ops] == ["embeddings=False"]
    asked = swap.survey(model, call, Scheme("dynamic", embeddings=True))
    assert [layer.kind for layer in asked.chosen] == ["embedding", "linear"]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = nn.ModuleList([self.first])
        self.table = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.again[0](self.first(self.table(ids))))


def test_shared_layers_and_tied_weights_stay_right(tmp_path: Path) -> None:
    model, ids = Shared().eval(), torch.arange(6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    artifact = lq_plugin.export(lq_plugin.quantize(model, [ids], DYNAMIC), tmp_path, ["torch"])["torch"]
    loaded, sqnr = lq_plugin.load(artifact.path, factory=Shared), _sqnr()
    assert loaded.first is loaded.again[0]  # type: ignore[index]
    assert [op["name"] for op in artifact.quantized_ops] == ["first", "head"]
    with torch.no_grad():
        sqnr.update(loaded(ids), model(ids))
    assert sqnr.compute() > 25
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_transformer_layers_keep_working_and_no_global_switch_moves(masked: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Encoder().eval(), torch.randn(2, 5, 16)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if masked else None
    call = (x, mask) if masked else (x,)
    artifact = lq_plugin.export(lq_plugin.quantize(model, [call], DYNAMIC), tmp_path, ["torch"])["torch"]
    assert torch.backends.mha.get_fastpath_enabled()
    assert [op["name"].rpartition(".")[2] for op in artifact.quantized_ops] == ["linear1", "linear2"] * 2
    reasons = {op["name"].rpartition(".")[2]: op["reason"] for op in artifact.float_ops}
    assert reasons["out_proj"] == "its forward is never called; its weight may be used directly"
    loaded, sqnr = lq_plugin.load(artifact.path, factory=Encoder), _sqnr()
    inside = slice(None) if mask is None else ~mask
    with torch.no_grad():
        sqnr.update(loaded(*call)[inside], model(*call)[inside])
    assert sqnr.compute() > 25


def test_the_target_may_be_the_layer_itself(tmp_path: Path) -> None:
    model, x = nn.LSTM(4, 8).eval(), torch.randn(5, 2, 4)
    artifact = lq_plugin.export(lq_plugin.quantize(model, [x], DYNAMIC), tmp_path, ["torch"])["torch"]
    assert [op["name"] for op in artifact.quantized_ops] == ["LSTM"]
    loaded = lq_plugin.load(artifact.path, factory=lambda: nn.LSTM(4, 8))
    assert loaded(x)[0].shape == (5, 2, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"skip": ["bady.*"]}, r"skip: 'bady.\*' is unknown. Did you mean 'body"),
        ({"only": ["op:lstm"]}, "only: 'op:lstm' matches no operator of this model. It has: op:linear"),
        ({"skip": ["op:conv2d"]}, "skip: 'op:conv2d' is unknown. .*'op:linear'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ConfigError, match=said):
        lq_plugin.export(lq_plugin.quantize(model, [torch.randn(2, 4)], Scheme("dynamic", **options)), tmp_path)


def test_nothing_to_quantize_is_named() -> None:
    with pytest.raises(
        UnsupportedError, match=r"nothing in it can be quantized.*0: no dynamic INT8 form of this layer"
    ):
        swap.survey(nn.Sequential(nn.Conv1d(2, 2, 1)), ((torch.randn(1, 2, 3),), {}), DYNAMIC)


class Remembering(nn.Module):
    """Changes its buffer, an attribute, its input and the random state in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.lazy = nn.Linear(4, 4), nn.LazyLinear(4)
        self.register_buffer("calls", torch.zeros(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.mul_(2) + torch.rand(())
        return self.lazy(self.head(self.last))


def test_a_survey_leaves_the_module_the_example_and_the_random_state_untouched() -> None:
    model, x = Remembering().eval(), torch.ones(2, 4)
    state = torch.get_rng_state()
    found = swap.survey(model, ((x,), {}), DYNAMIC)
    assert [layer.paths for layer in found.chosen] == [("head",)]
    assert [op.reason for op in found.coverage.float_ops] == ["its size is not known before its first call"]
    assert (model.calls.item(), model.last, x.sum().item()) == (0, None, 8)
    assert type(model.lazy) is nn.LazyLinear
    assert "forward" not in model.head.__dict__
    assert type(model.head) is nn.Linear
    assert torch.equal(torch.get_rng_state(), state)


class Reading(nn.Module):
    """Uses the weights of layers that it also calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.table(ids)).to(self.body.weight.dtype)) @ self.table.weight.T


class Unbatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.gru, self.head = nn.Linear(4, 4), nn.GRU(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.body(x))[0][-1])


def shadowed() -> nn.Linear:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight) * 2  # type: ignore[method-assign]
    return layer


def padded(value: float) -> nn.EmbeddingBag:
    bag = nn.EmbeddingBag(9, 4, mode="sum", padding_idx=0)
    nn.init.constant_(bag.weight[0], value)
    return bag


USES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, str]]] = {
    "weights are read": (
        Reading,
        torch.arange(6).view(2, 3),
        dict.fromkeys(("body", "table"), "its weight is read outside its forward"),
    ),
    "one sequence": (
        Unbatched,
        torch.randn(3, 4),
        {"gru": "kernel does not take 2 dimensions", "head": "kernel does not take 1 dimensions"},
    ),
    "float64": (
        lambda: nn.Sequential(nn.Linear(4, 4), First64(), nn.Linear(4, 4, dtype=torch.float64)),
        torch.randn(2, 4),
        {"2": "its weights are not float32"},
    ),
    "forward of the instance": (
        lambda: nn.Sequential(nn.Linear(4, 4), shadowed()),
        torch.randn(2, 4),
        {"1": "overrides the forward of Linear"},
    ),
    "max_norm": (
        lambda: nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), nn.Linear(4, 4)),
        torch.arange(6),
        {"0": "does not apply max_norm"},
    ),
    "padding of zeros": (lambda: nn.Sequential(padded(0.0)), torch.arange(6).view(2, 3), {}),
    "padding of ones": (
        lambda: nn.Sequential(padded(1.0), nn.Linear(4, 4)),
        torch.arange(6).view(2, 3),
        {"0": "does not leave out padding_idx"},
    ),
}


class First64(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


@pytest.mark.parametrize(("build", "x", "reasons"), USES.values(), ids=USES)
def test_a_layer_stays_float_where_its_int8_form_cannot_be_used_so(
    build: Callable[[], nn.Module], x: Tensor, reasons: dict[str, str], tmp_path: Path
) -> None:
    model, scheme = build().eval(), Scheme("dynamic", embeddings=True)
    coverage = swap.survey(model, ((x,), {}), scheme).coverage
    assert {op.name for op in coverage.float_ops} == reasons.keys()
    assert all(reasons[op.name] in op.reason for op in coverage.float_ops)
    artifact = lq_plugin.export(lq_plugin.quantize(model, [x], scheme), tmp_path, ["torch"])["torch"]
    loaded, sqnr = lq_plugin.load(artifact.path, factory=lambda: model), _sqnr()
    with torch.no_grad():
        sqnr.update(loaded(x), model(x))
    assert sqnr.compute() > 25


class Around(nn.Module):
    """Two layers, and a forward that asks for more of them than a call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = self.layer(), nn.Linear(4, 4)

    def layer(self) -> nn.Module:
        return nn.Linear(4, 4)


class ByType(Around):
    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.body, self.head):
            x = layer(x).relu() if isinstance(layer, nn.Linear) else layer(x)
        return x


class ByParameters(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.to(next(self.parameters()).dtype)))


class ByComputedWeight(Around):
    def layer(self) -> nn.Module:
        return parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) @ self.body.weight)


class ByAttributes(Around):
    def layer(self) -> nn.Module:
        return nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        self.body.flatten_parameters()
        assert (self.body.proj_size, self.body.hidden_size) == (0, 4)
        return self.head(self.body(x)[0])


class ByClosure(Around):
    def __init__(self) -> None:
        super().__init__()
        self.both = lambda x, *, bend=torch.tanh: bend(self.body(x)) + self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x)


AROUND = {
    ByType: {"body": "computes something else without the float layer", "head": "computes something else"},
    ByParameters: {"head": "fails without the float layer (StopIteration"},
    ByComputedWeight: {"body": "fails without the float layer (TypeError"},
    ByAttributes: {},
    ByClosure: {},
}


@pytest.mark.parametrize("build", AROUND)
def test_a_layer_stays_float_where_the_forward_asks_it_for_more_than_int8_layers_have(
    build: type[Around], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(3, 5, 4)
    candidate = lq_plugin.quantize(model, [x], "dynamic")
    reasons = AROUND[build]
    if len(reasons) == 2:
        with pytest.raises(UnsupportedError, match=r"nothing in it can be quantized.*computes something else"):
            lq_plugin.export(candidate, tmp_path, ["torch"])
        return
    artifact = lq_plugin.export(candidate, tmp_path, ["torch"])["torch"]
    assert {op["name"] for op in artifact.quantized_ops} == {"body", "head"} - reasons.keys()
    assert {op["name"]: reasons[op["name"]] in op["reason"] for op in artifact.float_ops} == dict.fromkeys(
        reasons, True
    )
    loaded, sqnr = lq_plugin.load(artifact.path, factory=build), _sqnr()
    with torch.no_grad():
        sqnr.update(loaded(x), model(x))
    assert sqnr.compute() > 25


def test_names_are_those_without_compilation(tmp_path: Path) -> None:
    model = nn.Sequential(
        torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Identity()), backend="eager"), nn.Linear(4, 4)
    )
    for scheme in (Scheme("dynamic", skip=["0.0"]), Scheme("dynamic", only=["1"])):
        candidate = lq_plugin.quantize(model, [torch.randn(3, 4)], scheme)
        for artifact in lq_plugin.export(candidate, tmp_path, ["onnx"]).values():
            assert [(op["op"], len(artifact.quantized_ops)) for op in artifact.float_ops] == [("linear", 1)]
    with pytest.raises(ConfigError, match=r"skip: '0\._orig_mod\.0' is unknown\. .*'0\.0'"):
        lq_plugin.quantize(model, [torch.randn(3, 4)], Scheme("dynamic", skip=["0._orig_mod.0"]))


def test_weights_that_are_no_numbers_stay_float_everywhere(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.constant_(model[0].weight[0], torch.inf)
    for artifact in lq_plugin.export(lq_plugin.quantize(model, [torch.ones(3, 4)], "dynamic"), tmp_path).values():
        assert len(artifact.quantized_ops) == 1
        assert [op["reason"] for op in artifact.float_ops] == ["its weights hold nan or infinity"]


def test_the_first_batch_is_tried_at_once() -> None:
    with pytest.raises(CaptureError, match=r"batches: the forward of Sequential fails with the first one .* shapes"):
        lq_plugin.quantize(nn.Sequential(nn.Linear(4, 4)), [torch.randn(3, 5)], "dynamic")


def test_only_transformers_with_int8_layers_leave_their_fast_path() -> None:
    model = nn.ModuleList([Encoder(), Encoder()]).eval()
    made: Any = swap.swapped(model, {"0.encoder.layers.1.linear1": nn.Identity()})
    assert [e.encoder.use_nested_tensor for e in made] == [False, True]
    assert [layer.activation_relu_or_gelu for e in made for layer in e.encoder.layers] == [1, 0, 1, 1]
    assert all(e.encoder.use_nested_tensor for e in model)  # type: ignore[union-attr]


def test_the_float_weights_of_what_is_replaced_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, copied = nn.Sequential(nn.LSTM(4, 8), First(), nn.Linear(8, 3)), set[int]()
    copy = nn.Parameter.__deepcopy__

    def counting(parameter: nn.Parameter, memo: Any) -> Any:
        copied.add(parameter.numel())
        return copy(parameter, memo)

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", counting)
    swap.swapped(model, {"0": nn.Identity()})
    assert copied == {parameter.numel() for parameter in model[2].parameters()}
