"""Every kind of layer: INT8 is close to float, and plain tensors make the same layer again."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

from lq_plugin import cpu
from lq_plugin.eager.layers import KINDS, flatten, misfits, quantized, unfit_call, unflatten
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.qparams import QuantSpec

X, IDS = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12).view(3, 4) % 10
BOTH = {"bidirectional": True, "num_layers": 2, "batch_first": True, "dropout": 0.3}
STATE = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))

LAYERS: dict[str, tuple[str, nn.Module, tuple[Any, ...]]] = {
    "linear": ("linear", nn.Linear(8, 6), (X,)),
    "linear without bias": ("linear", nn.Linear(8, 6, bias=False), (X,)),
    "lstm": ("lstm", nn.LSTM(8, 16), (X,)),
    "lstm both ways": ("lstm", nn.LSTM(8, 16, **BOTH), (X,)),
    "lstm without bias": ("lstm", nn.LSTM(8, 16, bias=False), (X,)),
    "lstm with state": ("lstm", nn.LSTM(8, 16), (X, (STATE, STATE))),
    "lstm packed": ("lstm", nn.LSTM(8, 16), (pack_sequence([X[0], X[1, :3], X[2, :1]]),)),
    "gru": ("gru", nn.GRU(8, 16), (X,)),
    "gru both ways": ("gru", nn.GRU(8, 16, **BOTH), (X,)),
    "gru without bias": ("gru", nn.GRU(8, 16, bias=False), (X,)),
    "gru packed": ("gru", nn.GRU(8, 16), (pack_sequence([X[0], X[1, :3], X[2, :1]]),)),
    "lstm cell": ("lstm_cell", nn.LSTMCell(8, 16), (X[0],)),
    "lstm cell without bias": ("lstm_cell", nn.LSTMCell(8, 16, bias=False), (X[0],)),
    "gru cell": ("gru_cell", nn.GRUCell(8, 16), (X[0], STATE[0])),
    "rnn cell": ("rnn_cell", nn.RNNCell(8, 16), (X[0],)),
    "rnn cell with relu": ("rnn_cell", nn.RNNCell(8, 16, nonlinearity="relu"), (X[0],)),
    "embedding": ("embedding", nn.Embedding(10, 8, padding_idx=0), (IDS,)),
    "embedding bag": ("embedding_bag", nn.EmbeddingBag(10, 8, mode="sum"), (IDS,)),
    "embedding bag by offsets": (
        "embedding_bag",
        nn.EmbeddingBag(10, 8, mode="sum"),
        (IDS.flatten(), torch.tensor([0, 5])),
    ),
}


def test_every_kind_is_tried() -> None:
    assert {kind for kind, _, _ in LAYERS.values()} == set(KINDS)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("kind", "layer", "call"), LAYERS.values(), ids=LAYERS)
def test_a_layer_is_close_to_float_and_the_same_from_plain_tensors(
    kind: str, layer: nn.Module, call: tuple[Any, ...], per_channel: bool
) -> None:
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    int8 = quantized(layer.eval(), kind, QuantSpec(per_channel=per_channel))
    options, tensors = flatten(int8, kind)
    assert misfits(layer, kind, tensors) == []
    again = unflatten(kind, options, tensors)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    assert {t.dtype for t in tensors.values()} <= {torch.int8, torch.uint8, torch.float32}
    assert {type(value) for value in options.values()} <= {int, bool, str}
    weights = [name for name, tensor in tensors.items() if tensor.dtype in (torch.int8, torch.uint8)]
    assert weights
    per_row = per_channel or kind.startswith("embedding")
    assert all(tensors[f"{name}.scale"].dim() == per_row for name in weights)
    sqnr = SignalToQuantizationNoise()
    with torch.no_grad():
        given, wanted, rebuilt = (tree_leaves(module(*call)) for module in (int8, layer, again))
    for got, float_, same in zip(given, wanted, rebuilt, strict=True):
        if got is not None:  # a packed sequence may have no order
            sqnr.update(got, float_)
            assert torch.equal(got, same)
    assert sqnr.compute() > 30


def test_a_scale_for_each_channel_helps_where_rows_are_uneven() -> None:
    layer = nn.LSTM(8, 16)
    with torch.no_grad():
        layer.weight_ih_l0 *= torch.logspace(-2, 1, 64).unsqueeze(1)
    found = {}
    for per_channel in (True, False):
        sqnr = SignalToQuantizationNoise()
        with torch.no_grad():
            sqnr.update(quantized(layer, "lstm", QuantSpec(per_channel=per_channel))(X)[0], layer(X)[0])
        found[per_channel] = sqnr.compute()
    assert found[True] > found[False] + 3


@pytest.mark.parametrize(("kind", "layer"), [("linear", nn.Linear(8, 32)), ("lstm", nn.LSTM(8, 16, 2))])
def test_inputs_have_eight_bits_where_products_cannot_saturate(
    kind: str, layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_wide = "avx512_vnni" in cpu.isa()
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    found = {}
    for bits, flags in itertools.product((8, 7), ("avx512_vnni", "avx_vnni")):
        monkeypatch.setattr(cpu, "isa", lambda flags=flags: [flags])
        made = quantized(layer, kind, QuantSpec(bits, symmetric=True, per_channel=True))
        sqnr = SignalToQuantizationNoise()
        with torch.no_grad():
            (got, *_), (again, *_), (wanted, *_) = (
                tree_leaves(module(X)) for module in (made, unflatten(kind, *flatten(made, kind)), layer)
            )
        assert torch.equal(got, again)
        sqnr.update(got, wanted)
        found[bits, flags] = sqnr.compute()
    if is_wide:
        assert found[8, "avx512_vnni"] > found[8, "avx_vnni"] + 3
    else:  # the products really saturate
        assert found[8, "avx512_vnni"] < found[8, "avx_vnni"] - 3
    assert found[7, "avx512_vnni"] == found[7, "avx_vnni"] > found[8, "avx_vnni"] + 1


def test_the_largest_products_do_not_saturate_on_this_cpu() -> None:
    layer = nn.Linear(64, 4, bias=False)
    nn.init.ones_(layer.weight)
    for bits in (7, 8):
        given = quantized(layer, "linear", QuantSpec(bits, symmetric=True, per_channel=True))(torch.ones(2, 64))
        torch.testing.assert_close(given, torch.full((2, 4), 64.0), rtol=1e-3, atol=0)


def test_the_engine_of_the_process_is_left_as_it_was() -> None:
    before = torch.backends.quantized.engine
    quantized(nn.Linear(2, 2), "linear", QuantSpec())
    assert torch.backends.quantized.engine == before


CALLS: dict[str, tuple[str, nn.Module, tuple[Any, ...], dict[str, Any], str | None]] = {
    "linear": ("linear", nn.Linear(8, 6), (X,), {}, None),
    "linear on one row": ("linear", nn.Linear(8, 6), (X[0, 0],), {}, "does not take 1 dimensions"),
    "linear by keyword": ("linear", nn.Linear(8, 6), (), {"input": X}, "does not take 'input' by keyword"),
    "lstm by keyword": ("lstm", nn.LSTM(8, 16), (), {"input": X, "hx": None}, None),
    "lstm on one sequence": ("lstm", nn.LSTM(8, 16), (X[0],), {}, "does not take 2 dimensions"),
    "lstm packed": ("lstm", nn.LSTM(8, 16), (pack_sequence([X[0], X[1, :3]]),), {}, None),
    "gru on one sequence": ("gru", nn.GRU(8, 16), (X[0],), {}, "does not take 2 dimensions"),
    "cell on one row": ("gru_cell", nn.GRUCell(8, 16), (X[0, 0],), {}, "does not take 1 dimensions"),
    "table on one index": ("embedding", nn.Embedding(10, 8), (IDS[0, 0],), {}, "does not take 0 dimensions"),
    "table on a cube": ("embedding", nn.Embedding(10, 8), (IDS[None],), {}, "does not take 3 dimensions"),
    "table on turned indices": ("embedding", nn.Embedding(10, 8), (IDS.t(),), {}, "indices that are not contiguous"),
}


@pytest.mark.parametrize(("kind", "layer", "args", "kwargs", "reason"), CALLS.values(), ids=CALLS)
def test_calls_that_the_kernels_cannot_take_are_told_from_those_they_can(
    kind: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str | None
) -> None:
    layer.eval()(*args, **kwargs)
    int8, said = quantized(layer, kind, QuantSpec(per_channel=True)), unfit_call(kind, args, kwargs)
    if reason is None:
        assert said is None
        int8(*args, **kwargs)
    else:
        assert said is not None
        assert reason in said
        with pytest.raises((RuntimeError, IndexError, TypeError)):  # or the reason would be a pretext
            int8(*args, **kwargs)
