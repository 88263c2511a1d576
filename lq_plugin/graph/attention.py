"""The forward of ``nn.MultiheadAttention`` that is captured: one linear layer each for queries, keys and values.

torch's own forward computes all three in one product, then splits the result by transposing and copying it in five
dimensions. Runtimes would do the same. With separate layers an encoder takes .73 of the time of onnxruntime's own INT8
model, and .90 of NNCF's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_forward: Any = nn.MultiheadAttention.forward


def forward(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute what ``nn.MultiheadAttention.forward`` computes, from the same arguments."""
    if _is_left_to_torch(self, query) or (is_causal and attn_mask is None):
        given = (query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        made: tuple[Tensor, Tensor | None] = _forward(self, *given)
        return made
    if query.dim() == 2:
        batch = 0 if self.batch_first else 1
        padding = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        q, k, v = (x.unsqueeze(batch) for x in (query, key, value))
        output, weights = forward(self, q, k, v, padding, need_weights, attn_mask, average_attn_weights, is_causal)
        return output.squeeze(batch), None if weights is None else weights.squeeze(0)
    query, key, value = _heads(self, query, key, value)
    causal = is_causal and key_padding_mask is None and not need_weights  # torch ignores the mask then
    mask = _of_the_past(query, key) if causal else _added(attn_mask, key_padding_mask, query)
    heads, weights = _attention(query, key, value, mask, need_weights)
    ordered = heads.permute((0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3))
    # Without this copy, whether flattening copies would depend on the memory layout, and so on the device.
    output = _output(self.out_proj, ordered.clone(memory_format=torch.contiguous_format).flatten(-2))
    return output, weights.mean(1) if weights is not None and average_attn_weights else weights


def _is_left_to_torch(layer: Any, query: Tensor) -> bool:
    """Whether torch's own forward is used: for options that are rarely set, and for calls that torch refuses."""
    longer_keys = layer.bias_k is not None or layer.bias_v is not None or layer.add_zero_attn
    return longer_keys or (layer.training and layer.dropout > 0.0) or query.dim() not in (2, 3)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Output and weights of each head.

    Rows that are fully masked give zeros in ``scaled_dot_product_attention``, and nan if weights are returned, as in
    torch.
    """
    if not need_weights:
        return F.scaled_dot_product_attention(query, key, value, mask), None
    scores = (query * math.sqrt(1.0 / query.shape[-1])) @ key.transpose(-2, -1)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return weights @ value, weights


def _heads(layer: Any, *inputs: Tensor) -> list[Tensor]:
    """Queries, keys and values, each of shape (batch, heads, length, size of a head)."""
    apart = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    weights = layer.in_proj_weight.chunk(3) if layer._qkv_same_embed_dim else apart
    biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    order = (0, 2, 1, 3) if layer.batch_first else (1, 2, 0, 3)
    return [
        torch.unflatten(F.linear(x, weight, bias), -1, (layer.num_heads, layer.head_dim)).permute(order)
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    ]


def _of_the_past(query: Tensor, key: Tensor) -> Tensor:
    """The causal mask, which is added to the scores.

    If lengths are fixed, it is a constant in ONNX. For ``is_causal=True`` the exporter would compute a mask in every
    call, with one more transposition of the keys. With a bool mask, OpenVINO (2026.4) does not fuse the attention.
    """
    size = (query.shape[2], key.shape[2])
    return torch.full(size, -math.inf, dtype=query.dtype, device=query.device).triu(1)


def _added(mask: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
    """The mask and padding that are added to the scores: -inf where a bool mask is true."""
    batch, heads = query.shape[:2]
    mask, padding = (_numbers(given, query.dtype) for given in (mask, padding))
    if mask is not None and mask.dim() == 3:
        mask = torch.unflatten(mask, 0, (batch, heads))
    if padding is None:
        return mask
    padding = padding[:, None, None, :]
    return padding if mask is None else mask + padding


def _numbers(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _output(layer: nn.Linear, x: Tensor) -> Tensor:
    """Compute the output projection.

    The layer is called, so that the operator has its name, unless it has hooks or a forward of its own: torch's own
    attention ignores these and reads the weights alone.
    """
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    if not hooked and getattr(layer.forward, "__func__", None) is nn.Linear.forward:
        called: Tensor = layer(x)
        return called
    return F.linear(x, layer.weight, layer.bias)
