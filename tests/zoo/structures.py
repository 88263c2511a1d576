"""Networks that are unusual in how they are called, what they return or how their forward is written."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = namedtuple("Pair", ["logits", "features"])


class TwoInputs(nn.Module):
    """An image and a dict of numbers and categories go in, a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.kind = nn.Embedding(10, 8)
        self.table = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, image: Tensor, table: dict[str, Tensor], scale: float = 1.0) -> dict[str, Tensor | None]:
        columns = torch.cat([table["numbers"], self.kind(table["kind"])], dim=1)
        both = torch.cat([self.image(image), self.table(columns)], dim=1)
        return {"logits": self.head(both) * scale, "nothing": None, "features": both}


class CalledTwice(nn.Module):
    """One encoder sees both inputs; two ways of comparing them come back as a namedtuple."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(64, 8)

    def forward(self, left: Tensor, right: Tensor) -> Pair:
        a, b = self.head(self.encoder(left)), self.head(self.encoder(right))
        return Pair(torch.einsum("bi,bi->b", a, b), a - b)


class Blocks(nn.Module):
    """In-place operators, scalars, and blocks of no_grad and autocast inside the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.frozen(x)
        y = self.conv(x).add_(0.5)
        y *= 2
        y += x
        with torch.autocast(x.device.type, enabled=False):
            y = self.norm(y.float()).relu_()
        return self.head(y.mean((2, 3))).clamp_(-10, 10)


class IntegerOutput(nn.Module):
    """Class indices, a plain number, one tensor twice and an input come out; one input is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 6))

    def forward(self, x: Tensor, weights: Tensor, labels: Tensor | None = None) -> OrderedDict[str, Tensor | int]:
        logits = self.net(x)
        return OrderedDict(logits=logits, classes=logits.argmax(1), count=6, again=logits, x=x)


class ConstantMatrices(nn.Module):
    """Products with parameters that belong to no layer: addmm (as in GPT-2) and matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(16, 64) / 4)
        self.bias = nn.Parameter(torch.randn(64))
        self.second = nn.Parameter(torch.randn(64, 5) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(torch.addmm(self.bias, x, self.first)) @ self.second


class EqualLayers(nn.Module):
    """One linear layer that is used twice, and two with equal weights, like copies of a layer before training."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(32, 32)
        self.first = nn.Linear(32, 32)
        self.second = deepcopy(self.first)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shared(F.gelu(self.shared(x)))
        for norm, copy in zip(self.norms, (self.first, self.second), strict=False):
            x = x + F.gelu(copy(norm(x)))
        return self.head(self.norms[2](x))


class Ranks(nn.Module):
    """Layers whose weights have two to four dimensions and the same number of output channels."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.rows = nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.image(x))))
        return self.head(F.relu(self.rows(x.mean(3))).mean(2))
