"""The format ``torch``: the same outputs from disk, and nothing else than what was written is loaded."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.artifacts import torch_layers
from lq_plugin.candidate import DynamicCandidate
from lq_plugin.eager import swap
from lq_plugin.eager.layers import quantized
from lq_plugin.errors import ArtifactError, ExportError
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise

X, IDS = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6).view(2, 3)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])


class Network(nn.Module):
    """An LSTM, a normalization and a head, with a buffer that is not saved."""

    def __init__(self, width: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.lstm, self.norm, self.head = nn.LSTM(8, width, 2), nn.LayerNorm(width), nn.Linear(width, 3, bias=bias)
        self.register_buffer("gain", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.lstm(x)[0])) * self.gain


class Tied(nn.Module):
    """The same weight looks up and multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


class Twice(nn.Module):
    """Two normalizations, with one weight where they are tied."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 8)
        nn.init.normal_(self.first.weight)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


class Listed(nn.Module):
    """Calls its layers through a plain list and dict, which torch does not look into."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.order, self.by_name = [self.first], {"second": self.second}

    def forward(self, x: Tensor) -> Tensor:
        return self.by_name["second"](self.order[0](x))


class Shared(nn.Module):
    def __init__(self, shared: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.more = nn.ModuleList([self.first if shared else nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        return self.more[0](self.first(x))


class Views(nn.Module):
    """Buffers that share memory, and one that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8)
        whole = torch.arange(16.0).view(2, 8)
        self.register_buffer("whole", whole)
        self.register_buffer("row", whole[0])
        self.register_buffer("turned", torch.arange(64.0).view(8, 8).t())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.row + self.whole[1]) @ self.turned


class Compiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.compile(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)  # type: ignore[no-any-return]


class Cells(nn.Module):
    """Cells without bias, which torch cannot quantize as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(8, 8, bias=False), nn.GRUCell(8, 8, bias=False)
        self.rnn = nn.RNNCell(8, 8, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.gru(self.lstm(x[0])[0]))


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 8, mode="sum", include_last_offset=True)

    def forward(self, ids: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        return self.bag(ids, offsets, weights)


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = parametrizations.weight_norm(nn.Linear(8, 8))
        self.head = parametrizations.spectral_norm(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def transformer() -> nn.Module:
    return nn.Transformer(8, 2, 1, 1, 16, batch_first=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], list[str]]] = {
    "network": (Network, (X,), ["lstm", "head"]),
    "without bias": (lambda: Network(bias=False), (X,), ["lstm", "head"]),
    "cells": (Cells, (X,), ["lstm", "gru", "rnn"]),
    "tied": (Tied, (IDS,), ["table", "head"]),
    "twice": (Twice, (X,), ["head"]),
    "listed": (Listed, (X,), ["first", "second"]),
    "shared": (Shared, (X,), ["first"]),
    "views": (Views, (X,), ["head"]),
    "compiled": (Compiled, (X,), ["head"]),
    "parametrized": (Parametrized, (X,), ["body", "head"]),
    "bag": (Weighted, (torch.arange(6), torch.tensor([0, 2, 6]), torch.rand(6)), ["bag"]),
    "the layer itself": (lambda: nn.GRU(8, 8), (X,), ["GRU"]),
    "encoder": (encoder, (X,), [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]),
    "padded encoder": (encoder, (X, None, PADDING), [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]),
    "transformer": (transformer, (X, X), [f"{p}coder.layers.0.linear{j}" for p in ("en", "de") for j in (1, 2)]),
}


def candidate_of(model: nn.Module, call: tuple[Any, ...]) -> DynamicCandidate:
    made = lq_plugin.quantize(model, [call], Scheme("dynamic", embeddings=True, algorithms=()))
    assert isinstance(made, DynamicCandidate)
    return made


def in_memory(candidate: DynamicCandidate) -> nn.Module:
    chosen = swap.survey(candidate.module, candidate.example, candidate.scheme).chosen
    made = {layer.paths[0]: quantized(layer.module, layer.kind, candidate.scheme.weights) for layer in chosen}
    return swap.swapped(candidate.module, made)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    torch_layers.export(candidate_of(Network(), (X,)), tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")  # of the float model
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # importing torch.compile
@pytest.mark.parametrize(("build", "call", "names"), MODELS.values(), ids=MODELS)
def test_what_is_loaded_computes_what_was_made(
    build: Callable[[], nn.Module], call: tuple[Any, ...], names: Sequence[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    candidate = candidate_of(model, call)
    coverage = torch_layers.export(candidate, tmp_path)
    assert [op.name for op in coverage.quantized] == names
    assert sorted(file.name for file in tmp_path.iterdir()) == ["layers.json", "model.safetensors"]
    loaded = torch_layers.rebuild(tmp_path, build)  # with other weights than the model's
    assert not any(part.training for part in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    sqnr = SignalToQuantizationNoise()
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.random.fork_rng():
            given, expected = loaded(*call), in_memory(candidate)(*call)
            for got, wanted in zip(tree_leaves(given), tree_leaves(expected), strict=True):
                assert torch.equal(got, wanted)
    with torch.no_grad():
        inside = ~PADDING if len(call) == 3 and call[1] is None else ...
        pairs = zip(tree_leaves(loaded(*call)), tree_leaves(model(*call)), strict=True)
        for got, wanted in pairs:
            sqnr.update(got[inside], wanted[inside])
    assert sqnr.compute() > 25


def test_the_file_is_small_and_holds_each_tensor_once(tmp_path: Path) -> None:
    class Forecaster(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(8, 128, 2), nn.Linear(128, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0])

    model = Forecaster()
    torch_layers.export(candidate_of(model, (X,)), tmp_path)
    float_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert (tmp_path / "model.safetensors").stat().st_size <= 0.3 * float_bytes
    (tmp_path / "tied").mkdir()
    torch_layers.export(candidate_of(Twice(), (X,)), tmp_path / "tied")
    names = safetensors.torch.load_file(tmp_path / "tied" / "model.safetensors").keys()
    assert {name for name in names if name.startswith("float.")} == {
        "float.first.weight",
        "float.first.bias",
        "float.second.bias",
    }
    assert json.loads((tmp_path / "tied" / "layers.json").read_text())["aliases"] == {"second.weight": "first.weight"}


def test_buffers_that_are_not_saved_stay_as_the_factory_makes_them(network: Path) -> None:
    def louder() -> nn.Module:
        model = Network()
        model.gain = torch.tensor(4.0)
        return model

    plain, loud = torch_layers.rebuild(network, Network), torch_layers.rebuild(network, louder)
    assert torch.equal(2 * plain(X), loud(X))


def test_tied_weights_are_tied_after_loading(tmp_path: Path) -> None:
    torch_layers.export(candidate_of(Twice(), (X,)), tmp_path)
    loaded: Any = torch_layers.rebuild(tmp_path, Twice)
    assert loaded.first.weight is loaded.second.weight


def test_float_weights_of_replaced_layers_are_freed(network: Path) -> None:
    watched: list[weakref.ref[Tensor]] = []

    def factory() -> nn.Module:
        model = Network()
        watched.extend(weakref.ref(p) for p in (*model.lstm.parameters(), *model.head.parameters()))
        return model

    loaded = torch_layers.rebuild(network, factory)
    gc.collect()
    assert watched
    assert not [reference for reference in watched if reference() is not None]
    assert loaded(X).shape == (3, 5, 3)


def test_a_model_that_the_factory_gives_away_is_not_changed(network: Path) -> None:
    model = Network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch_layers.rebuild(network, lambda: model)
    assert type(model.lstm) is nn.LSTM
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Smaller(Network):
    def __init__(self) -> None:
        super().__init__()
        del self.head


class OtherNorm(Network):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(5)


class Larger(Network):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.LayerNorm(8)


class WithGru(Network):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.GRU(8, 8, 2)


STRUCTURES: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: 3, "factory: it returned a int. It must return an nn.Module"),
    "missing layer": (Smaller, "Smaller has no submodule 'head', but a linear was exported. Give the class"),
    "other kind": (WithGru, "'lstm' of WithGru is GRU.* but a lstm with .*'hidden_size': 8"),
    "other size": (lambda: Network(9), "'lstm' of Network is LSTM.* but a lstm with .*'hidden_size': 8"),
    "no bias": (lambda: Network(bias=False), r"'head' of Network .* does not fit .* linear: \['bias'\] are"),
    "missing tensor": (Larger, 'Larger has other parameters.*Missing key.*"more.weight"'),
    "other shape": (OtherNorm, r"OtherNorm has other parameters.*norm.weight: .*\[8\].*\[5\]"),
}


@pytest.mark.parametrize(("factory", "said"), STRUCTURES.values(), ids=STRUCTURES)
def test_another_structure_is_refused_by_name(factory: Callable[[], Any], said: str, network: Path) -> None:
    with pytest.raises(ArtifactError, match=said):
        torch_layers.rebuild(network, factory)


@pytest.mark.parametrize(
    ("model", "factory", "said"),
    [
        (Twice(tied=False), Twice, "'first.weight' and 'second.weight' of Twice are one tensor, but were two"),
        (
            Shared(),
            lambda: Shared(shared=False),
            r"one layer at each of \[\['first'\], \['more.0'\]\], but the exported",
        ),
        (Shared(shared=False), Shared, r"one layer at each of \[\['first', 'more.0'\]\], but the exported"),
    ],
    ids=["tensors", "layer", "layers"],
)
def test_what_was_shared_otherwise_is_refused(
    model: nn.Module, factory: Callable[[], nn.Module], said: str, tmp_path: Path
) -> None:
    torch_layers.export(candidate_of(model, (X,)), tmp_path)
    with pytest.raises(ArtifactError, match=said):
        torch_layers.rebuild(tmp_path, factory)


def test_weights_that_were_tied_may_be_apart_in_the_factory(tmp_path: Path) -> None:
    model = Twice().eval()
    torch_layers.export(candidate_of(model, (X,)), tmp_path)
    apart = torch_layers.rebuild(tmp_path, lambda: Twice(tied=False))
    assert torch.equal(apart(X), torch_layers.rebuild(tmp_path, Twice)(X))


HOSTILE: dict[str, Callable[[Any], Any]] = {
    "no dict": lambda content: [],
    "nothing": lambda content: {},
    "layers": lambda content: content | {"layers": 3},
    "entry": lambda content: content | {"layers": ["os.system"]},
    "unknown kind": lambda content: changed(content, kind="os.system"),
    "kind of another type": lambda content: changed(content, kind=["lstm"]),
    "other kind": lambda content: changed(content, kind="gru_cell"),
    "options": lambda content: changed(content, options=None),
    "option of another type": lambda content: option(content, num_layers="2"),
    "bool as a number": lambda content: option(content, num_layers=True),
    "unknown option": lambda content: option(content, device="meta"),
    "paths": lambda content: changed(content, paths=7),
    "no path": lambda content: changed(content, paths=[]),
    "path": lambda content: changed(content, paths=[["lstm"]]),
    "aliases": lambda content: content | {"aliases": ["norm.weight"]},
    "alias": lambda content: content | {"aliases": {"more": ["norm.weight"]}},
    "loose alias": lambda content: content | {"aliases": {"more": "elsewhere"}},
}


def changed(content: Any, **values: Any) -> Any:
    return content | {"layers": [content["layers"][0] | values, *content["layers"][1:]]}


def option(content: Any, **values: Any) -> Any:
    return changed(content, options=content["layers"][0]["options"] | values)


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_description_of_another_form_is_refused(change: Callable[[Any], Any], network: Path) -> None:
    file = network / "layers.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ArtifactError, match=r"layers\.json was changed after it was written"):
        torch_layers.rebuild(network, Network)


def test_a_description_that_is_no_json_is_refused(network: Path) -> None:
    (network / "layers.json").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ArtifactError, match=r"layers\.json was changed after it was written"):
        torch_layers.rebuild(network, Network)


def test_options_beyond_the_factorys_layer_are_refused(network: Path) -> None:
    file = network / "layers.json"
    file.write_text(json.dumps(option(json.loads(file.read_text()), num_layers=10**9)))
    with pytest.raises(ArtifactError, match=r"but a lstm with .*1000000000"):
        torch_layers.rebuild(network, Network)


TENSORS: dict[str, tuple[str, Callable[[Tensor], Tensor | None]]] = {
    "missing weight": ("int8.0.weight_hh_l1", lambda tensor: None),
    "missing scale": ("int8.1.weight.scale", lambda tensor: None),
    "missing bias": ("int8.0.bias_ih_l0", lambda tensor: None),
    "shape": ("int8.1.weight", lambda tensor: tensor[:, :4].contiguous()),
    "shape of scales": ("int8.0.weight_ih_l0.scale", lambda tensor: tensor[:5].contiguous()),
    "dtype": ("int8.1.weight", lambda tensor: tensor.float()),
    "dtype of scales": ("int8.1.weight.scale", lambda tensor: tensor.double()),
}


@pytest.mark.parametrize(("name", "change"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_make_no_layer_are_named(
    name: str, change: Callable[[Tensor], Tensor | None], network: Path
) -> None:
    file = network / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    new = change(tensors.pop(name))
    safetensors.torch.save_file(tensors | ({} if new is None else {name: new}), file)
    with pytest.raises(ArtifactError, match=f"'{name.split('.', 2)[2]}'.* are missing, unexpected or of another"):
        torch_layers.rebuild(network, Network)


def test_a_superfluous_tensor_is_named(network: Path) -> None:
    file = network / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(file) | {"int8.1.payload": torch.zeros(1)}, file)
    with pytest.raises(ArtifactError, match=r"'payload'.* are missing, unexpected"):
        torch_layers.rebuild(network, Network)


def test_state_that_is_no_tensor_is_refused_by_name(tmp_path: Path) -> None:
    class Stateful(Network):
        def get_extra_state(self) -> object:
            return {"step": 3}

        def set_extra_state(self, state: object) -> None:
            raise NotImplementedError

    with pytest.raises(ExportError, match="its state '_extra_state' is a dict, which safetensors cannot hold"):
        torch_layers.export(candidate_of(Stateful(), (X,)), tmp_path)
    lazy = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8))
    with pytest.raises(ExportError, match=r"its state '1\.weight' is a UninitializedParameter, which safetensors"):
        torch_layers.export(candidate_of(lazy, (X,)), tmp_path)
