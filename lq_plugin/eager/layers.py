"""One float layer as an INT8 layer of torch, and that as plain tensors and back.

The only module that quantizes with ``torch.ao.quantization``: it is deprecated, and nothing maintained replaces it for
recurrent layers yet. Weights are INT8; in every call torch quantizes what goes into the layer, by its range, and adds
the products up in 32 bits.
"""

from __future__ import annotations

import inspect
import types
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
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

from lq_plugin import cpu
from lq_plugin.qparams import QuantSpec

Tensors = dict[str, Tensor]
_WEIGHTS = ("weight", "bias", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
PLAIN = (types.NoneType, bool, int, float, str)
_SCALE, _ZERO = ".scale", ".zero_point"
# The version attribute of torch's layers, as their _load_from_state_dict sets it for files of older versions: forward
# and packing reduce the range of inputs to 7 bits only from the next version on.
_WIDE_FROM = {"linear": 3, "lstm": 1, "gru": 1}
_WIDE_PRODUCTS = frozenset(("avx512_vnni",))  # with which fbgemm adds in 32 bits; it does not use avx_vnni


@dataclass(frozen=True)
class Kind:
    """One kind of layer.

    Args:
        float_class: the layer as users write it.
        int8_class: what torch makes of it.
        options: attributes of both that its constructor takes, with their types.
        ranks: how many dimensions its input may have; the float layer takes more.
        weights: reads quantized weights and float biases from an INT8 layer, by name.
        build: makes an INT8 layer from options, quantized weights and biases.
    """

    float_class: type[nn.Module]
    int8_class: type[nn.Module]
    options: Mapping[str, type]
    ranks: Container[int]
    weights: Callable[[Any], Mapping[str, Tensor | None]]
    build: Callable[[type[Any], Mapping[str, Any], Tensors], nn.Module]


def quantized(layer: nn.Module, kind: str, weights: QuantSpec) -> nn.Module:
    """Return the INT8 form of a float layer, which is not changed.

    Args:
        layer: of the kind's class or of a subclass that inherits its forward.
        kind: a key of ``KINDS``.
        weights: how many bits they have, and whether a scale for each channel. Tables always have one for each row,
            and all 8 bits, because they are not multiplied.
    """
    chosen = KINDS[kind]
    config: QConfig = per_channel_dynamic_qconfig if weights.per_channel else default_dynamic_qconfig
    limits = {"quant_min": weights.lowest, "quant_max": weights.highest}  # as qparams.py, and so every format, has them
    config = config._replace(weight=config.weight.with_args(**limits))
    if kind.startswith("embedding"):
        config = float_qparams_weight_only_qconfig
    container = nn.Sequential(_plain(layer, chosen.float_class)).eval()
    with _packing():
        quantize_dynamic(container, {chosen.float_class: config}, inplace=True)  # type: ignore[no-untyped-call]
        assert isinstance(container[0], chosen.int8_class)
        return _with_wide_inputs(container[0], kind)


def flatten(layer: nn.Module, kind: str) -> tuple[dict[str, Any], Tensors]:
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


def unflatten(kind: str, options: Mapping[str, Any], tensors: Tensors) -> nn.Module:
    """Return the INT8 layer that :func:`flatten` flattened."""
    chosen = KINDS[kind]
    with _packing():
        weights = {name: _requantized(name, tensors) for name in tensors if not name.endswith((_SCALE, _ZERO))}
        return _with_wide_inputs(chosen.build(chosen.int8_class, options, weights).eval(), kind)


def _with_wide_inputs(layer: Any, kind: str) -> nn.Module:
    """Let a layer quantize its input to 8 bits where that cannot saturate; torch takes 7, which costs 5.5 to 6 dB.

    fbgemm adds pairs of products in 16 bits on x86 CPUs without AVX-512 VNNI. Whether that is the case is decided here,
    when weights are packed for the CPU that runs them. Cells always take 7 bits.
    """
    if kind not in _WIDE_FROM:
        return layer  # type: ignore[no-any-return]
    weights = [weight for weight in KINDS[kind].weights(layer).values() if weight is not None and weight.is_quantized]
    largest = max((int(weight.int_repr().int().abs().max()) for weight in weights if weight.numel()), default=0)
    if 2 * 255 * largest > 2**15 - 1 and cpu.saturates(flags=_WIDE_PRODUCTS.intersection(cpu.isa())):
        return layer  # type: ignore[no-any-return]
    layer.version = _WIDE_FROM[kind]  # of torch's own file format, before which inputs had 8 bits
    if kind != "linear":  # which reads it in every call
        layer.set_weight_bias(dict(KINDS[kind].weights(layer)))
    return layer  # type: ignore[no-any-return]


def resembling(layer: nn.Module, original: nn.Module) -> nn.Module:
    """Give an INT8 layer the attributes that the forward around it may read, such as ``proj_size``; return it."""
    for name, value in vars(original).items():
        if not name.startswith("_") and isinstance(value, PLAIN) and not hasattr(layer, name):
            setattr(layer, name, value)
    if isinstance(original, nn.RNNBase):
        layer.flatten_parameters = _nothing  # type: ignore[assignment]
    return layer


def _nothing() -> None:
    """There are no parameters to flatten."""


def misfits(layer: nn.Module, kind: str, tensors: Tensors) -> list[str]:
    """Return the names of tensors that are missing, unexpected, or of another type or shape than the layer needs.

    Args:
        layer: the float layer.
        kind: a key of ``KINDS``.
        tensors: what :func:`unflatten` would be given.
    """
    table = kind.startswith("embedding")
    wanted: dict[str, tuple[torch.dtype, Sequence[tuple[int, ...]]]] = {}
    for name, tensor in _weights(layer, KINDS[kind].float_class).items():
        shape = tuple(tensor.shape)
        if name.startswith("bias"):
            wanted[name] = torch.float32, [shape]
            continue
        wanted[name] = torch.uint8 if table else torch.int8, [shape]
        wanted[name + _SCALE] = torch.float32, [shape[:1]] if table else [(), shape[:1]]
        if table and name + _ZERO in tensors:  # left out where all are 0
            wanted[name + _ZERO] = torch.float32, [shape[:1]]
    fitting = {
        name
        for name, (dtype, shapes) in wanted.items()
        if name in tensors and tensors[name].dtype == dtype and tuple(tensors[name].shape) in shapes
    }
    return sorted((wanted.keys() | tensors.keys()) - fitting)


def unfit_call(kind: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return why an INT8 layer cannot take a call that its float layer took; ``None`` where it can."""
    unknown = sorted(kwargs.keys() - inspect.signature(KINDS[kind].int8_class.forward).parameters.keys())
    if unknown:
        return f"torch's INT8 layer does not take {unknown[0]!r} by keyword"
    given = args[0] if args else kwargs["input"]
    if isinstance(given, Tensor) and given.dim() not in KINDS[kind].ranks:
        return f"torch's INT8 kernel does not take {given.dim()} dimensions"
    if kind.startswith("embedding") and not given.is_contiguous():
        return "torch's INT8 kernel does not take indices that are not contiguous"
    return None


@contextmanager
def _packing() -> Iterator[None]:
    """Pack weights for the kernels that are fastest step by step, and change nothing but the layer.

    torch's deprecation warnings are muted, and the random state is restored: torch fills new layers at random. Which
    kernels run is decided when weights are packed, so the engine of the process is restored afterwards. On an LSTM
    of 2×512 (8×64×64), fbgemm took 0.89 of the time that torch's own choice on x86 took.
    """
    engines: Any = torch.backends.quantized
    before = engines.engine
    if "fbgemm" in engines.supported_engines:
        engines.engine = "fbgemm"
    try:
        with _muted(), torch.random.fork_rng([]):
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
    parameters: dict[str, nn.Parameter | None] = {
        name: nn.Parameter(tensor) for name, tensor in _weights(layer, float_class).items()
    }
    if float_class is nn.Linear:
        parameters.setdefault("bias", None)
    plain = float_class.__new__(float_class)
    plain.__dict__ |= layer.__dict__ | {"_parameters": parameters, "_modules": {}}
    if "bias" in layer.__dict__:
        plain.bias = True  # type: ignore[assignment]
    return plain


def _weights(layer: nn.Module, float_class: type[nn.Module]) -> Tensors:
    """Weights and biases as they are now, whether parameters or computed by parametrizations."""
    names = getattr(layer, "_flat_weights_names", _WEIGHTS)
    found = {name: getattr(layer, name, None) for name in names}
    # Of recurrent layers, "bias" says whether there is one.
    weights = {name: tensor.detach() for name, tensor in found.items() if isinstance(tensor, Tensor)}
    if issubclass(float_class, nn.RNNBase | nn.RNNCellBase):  # torch wants biases; zeros change nothing
        for name in [name for name in weights if name.startswith("weight")]:
            weights.setdefault(name.replace("weight", "bias"), torch.zeros(len(weights[name])))
    return weights


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


_MATRICES = range(2, 65)  # torch has tensors of up to 64 dimensions
_LINEAR = {"in_features": int, "out_features": int}
_RECURRENT = {"input_size": int, "hidden_size": int, "num_layers": int, "batch_first": bool, "bidirectional": bool}
_CELL = {"input_size": int, "hidden_size": int}
_TABLE = {"num_embeddings": int, "embedding_dim": int}
_BAG = {**_TABLE, "mode": str, "include_last_offset": bool}

KINDS: Mapping[str, Kind] = {
    "linear": Kind(nn.Linear, nnqd.Linear, _LINEAR, _MATRICES, _of_linear, _build_linear),
    "lstm": Kind(nn.LSTM, nnqd.LSTM, _RECURRENT, (3,), _of_recurrent, _build_recurrent),
    "gru": Kind(nn.GRU, nnqd.GRU, _RECURRENT, (3,), _of_recurrent, _build_recurrent),
    "lstm_cell": Kind(nn.LSTMCell, nnqd.LSTMCell, _CELL, (2,), _of_recurrent, _build_cell),
    "gru_cell": Kind(nn.GRUCell, nnqd.GRUCell, _CELL, (2,), _of_recurrent, _build_cell),
    "rnn_cell": Kind(nn.RNNCell, nnqd.RNNCell, {**_CELL, "nonlinearity": str}, (2,), _of_recurrent, _build_cell),
    "embedding": Kind(nn.Embedding, nnq.Embedding, _TABLE, (1, 2), _of_table, _build_table),
    "embedding_bag": Kind(nn.EmbeddingBag, nnq.EmbeddingBag, _BAG, (1, 2), _of_table, _build_table),
}
