"""The module that every format holds, importable in a process of its own."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class Target(nn.Module):
    """Takes a dict, defaults and keywords, and returns a nest of containers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 36, 4)

    def forward(
        self, batch: dict[str, Tensor], mode: str = "plain", gain: float = 2.0, *, bias: Tensor | None = None
    ) -> dict[str, Any]:
        hidden = torch.relu(self.norm(self.conv(batch["image"])))
        logits = self.head(hidden.flatten(1)) * gain + batch["offset"]
        if bias is not None:
            logits = logits + bias
        return {
            "logits": logits,
            "parts": [logits.softmax(1), (hidden.mean((2, 3)), None)],
            "more": OrderedDict(second=logits.amax(1), first=logits.argmax(1)),
        }


def inputs(batch: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(batch, 1, 8, 8, generator=generator),
        "offset": torch.randn(batch, 4, generator=generator),
    }
