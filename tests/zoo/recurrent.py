"""Recurrent networks in every configuration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

KINDS: Mapping[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
INPUTS, HIDDEN = 4, 6


@dataclass(frozen=True)
class Configuration:
    kind: str
    layers: int
    bidirectional: bool
    batch_first: bool
    packed: bool
    state: bool
    bias: bool

    def __str__(self) -> str:
        flags = ("bidirectional", "batch_first", "packed", "state", "bias")
        return "-".join([self.kind, str(self.layers), *(flag for flag in flags if getattr(self, flag))])

    @property
    def dynamic_dims(self) -> dict[str, list[int]]:
        """Batch and length of everything."""
        dims = {"x": [0, 1]}
        if self.packed:
            dims["lengths"] = [0]
        if self.state:
            dims |= {"h": [1], "c": [1]} if self.kind == "lstm" else {"h": [1]}
        return dims

    def call(self, batch: int, steps: int) -> dict[str, Tensor]:
        """Inputs by name."""
        made = {"x": torch.randn((batch, steps, INPUTS) if self.batch_first else (steps, batch, INPUTS))}
        if self.packed:
            made["lengths"] = torch.randint(1, steps + 1, (batch,))
        for name in ("h", "c")[: (2 if self.kind == "lstm" else 1) if self.state else 0]:
            made[name] = torch.randn(self.layers * (2 if self.bidirectional else 1), batch, HIDDEN)
        return made


class Recurrent(nn.Module):
    """A recurrent layer, around which sequences are packed and states are given as configured."""

    def __init__(self, configuration: Configuration, total: bool = False, enforce_sorted: bool = False) -> None:
        super().__init__()
        self.configuration, self.total, self.enforce_sorted = configuration, total, enforce_sorted
        self.layer = KINDS[configuration.kind](
            INPUTS,
            HIDDEN,
            configuration.layers,
            bias=configuration.bias,
            batch_first=configuration.batch_first,
            bidirectional=configuration.bidirectional,
        )

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, h: Tensor | None = None, c: Tensor | None = None
    ) -> Any:
        state = h if c is None else (h, c)
        if lengths is None:
            return self.layer(x, state)
        first = self.configuration.batch_first
        packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=self.enforce_sorted)
        output, last = self.layer(packed, state)
        total = x.shape[1 if first else 0] if self.total else None
        return pad_packed_sequence(output, batch_first=first, total_length=total)[0], last


def covering(strength: int, kinds: Iterable[str] = KINDS) -> list[Configuration]:
    """Choose configurations among which any ``strength`` options are met in every combination of their values.

    A fault that needs more options than that at once is rare, and all combinations would be many times as many.
    """
    every = [Configuration(*values) for values in itertools.product(kinds, (1, 2), *[(False, True)] * 5)]
    combinations = {made: set(itertools.combinations(enumerate(vars(made).values()), strength)) for made in every}
    missing = set.union(*combinations.values())
    chosen = []
    while missing:
        chosen.append(max(every, key=lambda made: len(combinations[made] & missing)))
        missing -= combinations[chosen[-1]]
    return chosen
