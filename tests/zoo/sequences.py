"""Transformers and other networks over sequences."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Encoder(nn.Module):
    """nn.TransformerEncoder over feature vectors, with a mean over time."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Decoder(nn.Module):
    """nn.TransformerDecoder: cross attention slices its weights from one matrix for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(32, 4, 64, dropout=0.1, batch_first=True, activation="gelu")
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, target: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.decoder(target, memory, tgt_mask=mask, tgt_is_causal=True))


class VisionTransformer(nn.Module):
    """Patch embedding by a convolution, a class token and a learned position."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, 17, 32) * 0.2)
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.encoder(x))[:, 0])


class TiedLanguageModel(nn.Module):
    """Token and position embeddings; the head's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(200, 32)
        self.positions = nn.Embedding(12, 32)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 200, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(x + self.body(x)))


class HandmadeAttention(nn.Module):
    """Attention by matmul, bmm and einsum, with a mask, a fused projection and chunks of it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.mix = nn.Parameter(torch.randn(4, 8, 8) / 8**0.5)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, steps, width = x.shape
        q, k, v = (part.view(batch, steps, 4, 8).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(8)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
        attended = scores.softmax(-1).reshape(-1, steps, steps).bmm(v.reshape(-1, steps, 8))
        attended = torch.einsum("bhsd,hde->bhse", attended.view(batch, 4, steps, 8), self.mix)
        return self.out(F.dropout(attended.transpose(1, 2).reshape(batch, steps, width), 0.1, self.training))


class NormalizedMlp(nn.Module):
    """BatchNorm after linear layers, and one before any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.BatchNorm1d(16)
        self.body = nn.Sequential(
            nn.Linear(16, 64, bias=False),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.BatchNorm1d(64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.input(x)))


class Conformer(nn.Module):
    """A Conformer block: half a feed-forward, attention, gated depthwise convolution over time, half a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32)) for _ in range(2)
        )
        self.attention_norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.convolution_norm = nn.LayerNorm(32)
        self.convolution = nn.Sequential(
            nn.Conv1d(32, 64, 1),
            nn.GLU(dim=1),
            nn.Conv1d(32, 32, 7, padding="same", groups=32),
            nn.BatchNorm1d(32),
            nn.SiLU(),
            nn.Conv1d(32, 32, 1),
        )
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.feed_forwards[0](x)
        normal = self.attention_norm(x)
        x = x + self.attention(normal, normal, normal, need_weights=False)[0]
        x = x + self.convolution(self.convolution_norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(x + 0.5 * self.feed_forwards[1](x)).mean(1))
