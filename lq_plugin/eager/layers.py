"""One float layer as an INT8 layer of torch, and that as plain tensors and back.

The only module that touches ``torch.ao.quantization``: it is deprecated, and nothing maintained replaces it for
recurrent layers yet. Weights are INT8; in every call torch quantizes what goes into the layer, by its range, and adds
the products up in 32 bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import Tensor, nn
from torch.ao.quantization import (
    QConfig,
    default_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    per_channel_dynamic_qconfig,
    quantize_dynamic,
)

Tensors = dict[str, Tensor]
_WEIGHTS = ("weight", "bias", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
_SCALE, _ZERO = ".scale", ".zero_point"


@dataclass(frozen=True)
class Kind:
    """One kind of layer.

    Args:
        float_class: the layer as users write it.
        int8_class: what torch makes of it.
        options: attributes of both that its constructor takes, with their types.
        weights: reads quantized weights and float biases from an INT8 layer, by name.
        build: makes an INT8 layer from options, quantized weights and biases.
    """

    float_class: type[nn.Module]
    int8_class: type[nn.Module]
    options: Mapping[str, type]
    weights: Callable[[Any], Mapping[str, Tensor | None]]
    build: Callable[[type[Any], Mapping[str, Any], Tensors], nn.Module]


def quantized(layer: nn.Module, kind: str, granularity: str) -> nn.Module:
    """Return the INT8 form of a float layer, which is not changed.

    Args:
        layer: of the kind's class or of a subclass that inherits its forward.
        kind: a key of ``KINDS``.
        granularity: ``"per_channel"`` or ``"per_tensor"``; tables always have a scale for each row.
    """
    chosen = KINDS[kind]
    config: QConfig = per_channel_dynamic_qconfig if granularity == "per_channel" else default_dynamic_qconfig
    if kind.startswith("embedding"):
        config = float_qparams_weight_only_qconfig
    container = nn.Sequential(_plain(layer, chosen.float_class)).eval()
    with _packing():
        quantize_dynamic(container, {chosen.float_class: config}, inplace=True)  # type: ignore[no-untyped-call]
    assert isinstance(container[0], chosen.int8_class)
    return container[0]


def taken_apart(layer: nn.Module, kind: str) -> tuple[dict[str, Any], Tensors]:
    """Return an INT8 layer's options and plain tensors: integers, float scales and biases.

    They are copies: scales that torch gives out refer to memory that goes with the layer.
    """
    chosen = KINDS[kind]
    tensors: Tensors = {}
    for name, tensor in chosen.weights(layer).items():
        if tensor is None:
            continue
        if not tensor.is_quantized:
            tensors[name] = tensor.detach().clone()
        elif tensor.qscheme() == torch.per_tensor_affine:
            tensors[name], tensors[name + _SCALE] = tensor.int_repr(), torch.tensor(tensor.q_scale())
        else:
            tensors[name], tensors[name + _SCALE] = tensor.int_repr(), tensor.q_per_channel_scales().float().clone()
            if tensor.q_per_channel_zero_points().any():
                tensors[name + _ZERO] = tensor.q_per_channel_zero_points().float().clone()
    return {name: getattr(layer, name) for name in chosen.options}, tensors


def put_together(kind: str, options: Mapping[str, Any], tensors: Tensors) -> nn.Module:
    """Return the INT8 layer that :func:`taken_apart` took apart."""
    chosen = KINDS[kind]
    with _packing():
        weights = {name: _requantized(name, tensors) for name in tensors if not name.endswith((_SCALE, _ZERO))}
        return chosen.build(chosen.int8_class, options, weights).eval()


@contextmanager
def _packing() -> Iterator[None]:
    """Pack weights for the kernels that are fastest step by step, and keep torch's notes of deprecation to itself.

    Which kernels run is decided when weights are packed, so the engine of the process is what it was afterwards. On an
    LSTM of 2×512 (8×64×64), fbgemm took 0.89 of the time that torch's own choice on x86 took.
    """
    engines: Any = torch.backends.quantized
    before = engines.engine
    if "fbgemm" in engines.supported_engines:
        engines.engine = "fbgemm"
    try:
        with _muted():
            yield
    finally:
        engines.engine = before


@contextmanager
def _muted() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, .* are deprecated", UserWarning)
        yield


def _plain(layer: nn.Module, float_class: type[nn.Module]) -> nn.Module:
    """The layer as an instance of the very class that torch looks for, with biases, and on the same weights."""
    names = getattr(layer, "_flat_weights_names", _WEIGHTS)
    # Of recurrent layers, "bias" says whether there is one.
    found: dict[str, Any] = {name: getattr(layer, name, False) for name in names}
    weights = {
        name: None if tensor is None else nn.Parameter(tensor.detach())
        for name, tensor in found.items()
        if not isinstance(tensor, bool)
    }
    if issubclass(float_class, nn.RNNBase | nn.RNNCellBase):  # torch wants biases; zeros change nothing
        for name in [name for name in weights if name.startswith("weight")]:
            if weights.get(bias := name.replace("weight", "bias")) is None:
                weights[bias] = nn.Parameter(torch.zeros(len(found[name])))
    plain = float_class.__new__(float_class)
    plain.__dict__ |= layer.__dict__ | {"_parameters": weights, "_modules": {}}
    if "bias" in layer.__dict__:
        plain.bias = True  # type: ignore[assignment]
    return plain


def _requantized(name: str, tensors: Tensors) -> Tensor:
    values, scale = tensors[name], tensors.get(name + _SCALE)
    if scale is None:
        return values
    if not scale.dim():
        return torch._make_per_tensor_quantized_tensor(values, scale.item(), 0)
    zero = tensors.get(name + _ZERO, torch.zeros_like(scale))
    if values.dtype == torch.int8:
        scale, zero = scale.double(), zero.long()
    return torch._make_per_channel_quantized_tensor(values, scale, zero, 0)


def _of_linear(layer: Any) -> dict[str, Tensor | None]:
    weight, bias = layer._weight_bias()
    return {"weight": weight, "bias": bias}


def _of_recurrent(layer: Any) -> dict[str, Tensor | None]:
    return layer.get_weight() | layer.get_bias()  # type: ignore[no-any-return]


def _of_table(layer: Any) -> dict[str, Tensor | None]:
    return {"weight": layer.weight()}


def _build_linear(made: type[Any], options: Mapping[str, Any], weights: Tensors) -> nn.Module:
    layer = made(**options, bias_="bias" in weights)
    layer.set_weight_bias(weights["weight"], weights.get("bias"))
    return layer  # type: ignore[no-any-return]


def _build_recurrent(made: type[Any], options: Mapping[str, Any], weights: Tensors) -> nn.Module:
    layer = made(**options)
    layer.set_weight_bias(weights)
    return layer  # type: ignore[no-any-return]


def _build_cell(made: type[Any], options: Mapping[str, Any], weights: Tensors) -> nn.Module:
    layer = made(**options)
    parts = {part: {name: t for name, t in weights.items() if name.startswith(part)} for part in ("weight", "bias")}
    layer.set_weight_bias(parts)
    return layer  # type: ignore[no-any-return]


def _build_table(made: type[Any], options: Mapping[str, Any], weights: Tensors) -> nn.Module:
    layer = made(**options)
    layer.set_weight(weights["weight"])
    return layer  # type: ignore[no-any-return]


_LINEAR = {"in_features": int, "out_features": int}
_RECURRENT = {"input_size": int, "hidden_size": int, "num_layers": int, "batch_first": bool, "bidirectional": bool}
_CELL = {"input_size": int, "hidden_size": int}
_TABLE = {"num_embeddings": int, "embedding_dim": int}
_BAG = {**_TABLE, "mode": str, "include_last_offset": bool}

KINDS: Mapping[str, Kind] = {
    "linear": Kind(nn.Linear, nnqd.Linear, _LINEAR, _of_linear, _build_linear),
    "lstm": Kind(nn.LSTM, nnqd.LSTM, _RECURRENT, _of_recurrent, _build_recurrent),
    "gru": Kind(nn.GRU, nnqd.GRU, _RECURRENT, _of_recurrent, _build_recurrent),
    "lstm_cell": Kind(nn.LSTMCell, nnqd.LSTMCell, _CELL, _of_recurrent, _build_cell),
    "gru_cell": Kind(nn.GRUCell, nnqd.GRUCell, _CELL, _of_recurrent, _build_cell),
    "rnn_cell": Kind(nn.RNNCell, nnqd.RNNCell, {**_CELL, "nonlinearity": str}, _of_recurrent, _build_cell),
    "embedding": Kind(nn.Embedding, nnq.Embedding, _TABLE, _of_table, _build_table),
    "embedding_bag": Kind(nn.EmbeddingBag, nnq.EmbeddingBag, _BAG, _of_table, _build_table),
}
