"""Published networks for sequences, with random weights."""

import torch
from torch import Tensor, nn


class BertEncoder(nn.Module):
    """The embedding ``(N, 384)`` of token ids ``(N, T)``: six layers of width 384 (MiniLM-L6, arXiv:2002.10957).

    ``nn.TransformerEncoder`` would copy one layer, weights included. Equal layers distort a comparison: runtimes share
    equal constants, and an operator whose constant has several users may run in float.
    """

    def __init__(self, length: int, layers: int = 6, width: int = 384, tokens: int = 8192) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(torch.randn(1, length, width))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 6, 4 * width, activation="gelu", batch_first=True)
                for _ in range(layers)
            )
        )
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)
            else:  # zeros and ones would be equal constants in every layer
                nn.init.normal_(parameter, float(parameter.mean()), 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.norm(self.embedding(x) + self.positions)).mean(1)


class TcnBlock(nn.Module):
    """Two dilated causal convolutions over time and a residual connection (Bai et al., 2018, arXiv:1803.01271)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        past = nn.ZeroPad1d(((kernel - 1) * dilation, 0))
        self.layers = nn.Sequential(
            past,
            nn.Conv1d(inputs, outputs, kernel, dilation=dilation),
            nn.ReLU(),
            past,
            nn.Conv1d(outputs, outputs, kernel, dilation=dilation),
            nn.ReLU(),
        )
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.skip(x))


class Tcn(nn.Module):
    """Eight blocks of width 128 for series ``(N, 32, T)``; classes of the last step."""

    def __init__(self, inputs: int = 32, width: int = 128, blocks: int = 8, kernel: int = 3, classes: int = 10) -> None:
        super().__init__()
        widths = [inputs, *[width] * blocks]
        self.blocks = nn.Sequential(*(TcnBlock(widths[n], widths[n + 1], kernel, dilation=2**n) for n in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[..., -1])


class Recurrent(nn.Module):
    """Two recurrent layers of width 512 for series ``(N, T, 64)``; classes of the last step."""

    def __init__(self, layer: type[nn.RNNBase], inputs: int = 64, hidden: int = 512, classes: int = 10) -> None:
        super().__init__()
        self.layer, self.head = layer(inputs, hidden, 2, batch_first=True), nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class FeedForward(nn.Sequential):
    """A Conformer's feed-forward block, of which it adds half."""

    def __init__(self, width: int) -> None:
        layers = (nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        super().__init__(*layers)


class ConformerBlock(nn.Module):
    """Feed-forward, attention, convolution over time, feed-forward (Gulati et al., 2020, arXiv:2005.08100)."""

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.before, self.after = FeedForward(width), FeedForward(width)
        self.norm_attention, self.norm_conv, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.conv = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1),
            nn.GLU(dim=1),
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width),
            nn.BatchNorm1d(width),
            nn.SiLU(),
            nn.Conv1d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.before(x)
        y = self.norm_attention(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.conv(self.norm_conv(x).transpose(1, 2)).transpose(1, 2)
        return self.norm(x + 0.5 * self.after(x))


class Conformer(nn.Module):
    """Four blocks of width 256 for spectrograms of shape ``(N, 400, 80)``; their length is first divided by 4."""

    def __init__(self, width: int = 256, blocks: int = 4, classes: int = 64) -> None:
        super().__init__()
        self.subsample = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()
        )
        self.enter = nn.Linear(32 * 20, width)
        self.blocks = nn.Sequential(*(ConformerBlock(width, 4, 31) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.subsample(x.unsqueeze(1)).transpose(1, 2).flatten(2)
        return self.head(self.blocks(self.enter(x)))


class ByteModel(nn.Module):
    """Scores of the byte that follows a text of ASCII codes ``(N, T)``; two recurrent layers."""

    def __init__(self, layer: type[nn.RNNBase], width: int = 64, hidden: int = 192, codes: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        self.layer, self.head = layer(width, hidden, 2, batch_first=True), nn.Linear(hidden, codes)

    def scores(self, x: Tensor) -> Tensor:
        """Of the byte after each one, ``(N, T, codes)``."""
        return self.head(self.layer(self.embedding(x))[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(x))[0][:, -1])


class TextEncoder(nn.Module):
    """The embedding ``(N, width)`` of a text of ASCII codes ``(N, T)``: the mean over its tokens."""

    def __init__(self, width: int = 128, heads: int = 4, layers: int = 4, length: int = 64, codes: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.positions = nn.Parameter(0.1 * torch.randn(1, length, width))
        made = (
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.layers = nn.Sequential(*made, nn.LayerNorm(width))

    def tokens(self, x: Tensor) -> Tensor:
        """Of each token, ``(N, T, width)``."""
        return self.layers(self.embedding(x) + self.positions)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x).mean(1)
