"""Every global of torch that is temporarily replaced or emptied, and why."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.nn.utils import rnn

from lq_plugin.graph import attention, padding, recurrent

_rnn: Any = rnn
_export_utils: Any = torch._export.utils
_KEEPING_MODULES = (
    ("torchao.utils", "_assert_and_get_unique_device"),
    ("torch.ao.quantization.fx.utils", "assert_and_get_unique_device"),
)


@contextmanager
def isolated() -> Iterator[None]:
    """Run graph work in the middle of somebody's training: no gradients, no autocast, and nothing changed afterwards.

    The random state is restored, and attention is computed by operators that a graph can hold.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with (
        torch.random.fork_rng(devices),
        fast_path_off(),
        masks_as_given(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


@contextmanager
def fast_path_off() -> Iterator[None]:
    """Disable attention's fast path, an operator that no runtime knows; its effect on padding is kept."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return (padding.zeroing if self.use_nested_tensor else before)(self, *args, **kwargs)

    enabled, before = torch.backends.mha.get_fastpath_enabled(), nn.TransformerEncoder.forward
    torch.backends.mha.set_fastpath_enabled(False)
    nn.TransformerEncoder.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
        nn.TransformerEncoder.forward = before  # type: ignore[method-assign]


@contextmanager
def masks_as_given() -> Iterator[None]:
    """Keep transformers from asking whether a mask is causal: a graph cannot branch on the mask's values."""
    before = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = before


@contextmanager
def attention_in_parts() -> Iterator[None]:
    """Capture attention layers with one linear layer each for queries, keys and values; see attention.py."""
    before = nn.MultiheadAttention.forward
    nn.MultiheadAttention.forward = attention.forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.MultiheadAttention.forward = before  # type: ignore[method-assign]


@contextmanager
def tensors_copied_by_graph() -> Iterator[None]:
    """Let ``copy.deepcopy`` of a tensor be an operator: a metric or a layer that is made in a forward copies tensors.

    While a forward is captured, tensors have no data that could be copied.
    """
    before: Callable[[Tensor, Any], Tensor] = Tensor.__deepcopy__

    def deepcopy(self: Tensor, memo: Any) -> Tensor:
        return before(self, memo) if type(self) in (Tensor, nn.Parameter) else self.clone()

    Tensor.__deepcopy__ = deepcopy  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.__deepcopy__ = before  # type: ignore[method-assign]


@contextmanager
def recurrent_layers_whole() -> Iterator[None]:
    """Capture recurrent layers as operators of our own, and packed sequences as padded ones; see recurrent.py.

    ``torch.export`` would unroll the layers over the length of the example, and takes no packed sequences.
    """
    forwards, packing = {layer: layer.forward for layer in recurrent.LAYERS.values()}, _rnn._VF
    try:
        for kind, layer in recurrent.LAYERS.items():
            layer.forward = recurrent.forward_of(kind)
        _rnn._VF = SimpleNamespace(_pack_padded_sequence=recurrent.pack, _pad_packed_sequence=recurrent.unpack)
        yield
    finally:
        for layer, forward in forwards.items():
            layer.forward = forward
        _rnn._VF = packing


@contextmanager
def onnx_functions_parsed_once() -> Iterator[None]:
    """Keep the registry that ``torch.onnx.export`` makes anew in each call, from the sources of 500 functions.

    This took .25 of .65 s for a small network (AMD EPYC). Every call still has a registry of its own, and it is made
    anew where operators were added, whose functions it would lack.
    """
    registry: Any = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    before = registry.__dict__["from_torchlib"]

    def from_torchlib(**versions: int) -> Any:
        operators = len(torch._C._dispatch_get_all_op_names())
        full = _made(before.__func__, registry, operators, **versions)
        own = copy.copy(full)
        own.functions = {target: list(found) for target, found in full.functions.items()}
        return own

    registry.from_torchlib = staticmethod(from_torchlib)
    try:
        yield
    finally:
        registry.from_torchlib = before


@functools.cache
def _made(make: Callable[..., Any], owner: type[Any], operators: int, **options: Any) -> Any:
    return make(owner, **options)


@contextmanager
def operators_found_once() -> Iterator[None]:
    """Let torch ask its dispatcher once for its composite operators, not once for each namespace of operators.

    It asks anew because operators may have been added, which none are inside the block. A capture did so 66 times, a
    third of the time of a small network's.
    """
    before = _export_utils._materialize_cpp_cia_ops
    _export_utils._materialize_cpp_cia_ops = functools.cache(before)
    try:
        yield
    finally:
        _export_utils._materialize_cpp_cia_ops = before


@contextmanager
def modules_not_kept() -> Iterator[None]:
    """Empty the caches in which torchao and torch keep every graph whose device they were asked for, without a limit.

    Each conversion asks them, so its graphs would live as long as the process: a quarter of the float model's size for
    each where the float weights are shared, and more than all of it where they are not (torchao 0.18, torch 2.13).
    """
    try:
        yield
    finally:
        for owner, name in _KEEPING_MODULES:
            function = getattr(importlib.import_module(owner), name, None)
            if (clear := getattr(function, "cache_clear", None)) is not None:
                clear()


@contextmanager
def process_group_hidden() -> Iterator[None]:
    """Hide the process group while one process works and the others wait: a collective would never end."""
    group = torch.distributed.group.WORLD if torch.distributed.is_available() else None
    if group is None:
        yield
        return
    torch.distributed.group.WORLD = None
    try:
        yield
    finally:
        torch.distributed.group.WORLD = group
