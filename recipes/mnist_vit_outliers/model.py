"""A vision transformer in which a few channels after every LayerNorm are far larger than the others."""

from __future__ import annotations

import torch

from lq_plugin.errors import ConfigError

from ..mnist_vit.model import Attention, Block, MnistVit
from ..uneven import make_uneven


class OutlierVit(MnistVit):
    """``mnist_vit``'s network with outliers, as large transformers have them (T. Dettmers et al., LLM.int8(), 2022).

    Args:
        channels: how many channels after every LayerNorm of a block are outliers, the same ones everywhere.
        outliers: each is multiplied by ``2 ** outliers``, and divided by it in the linear layer that follows. Training
            and FP32 results are the same for every value, bit for bit; 0 gives the usual network.
        depth: number of blocks.
        lr: peak learning rate of the one-cycle schedule.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(self, channels: int = 3, outliers: int = 7, depth: int = 4, lr: float = 2e-3) -> None:
        super().__init__(depth=depth, lr=lr)
        width = self.positions.shape[2]
        for name, value, most in (("channels", channels, width), ("outliers", outliers, 16)):
            if not 0 <= value <= most:
                raise ConfigError(f"{name}: {value} is out of range. Allowed: 0 to {most}.")
        self.save_hyperparameters()
        factors = torch.ones(width)
        factors[torch.randperm(width, generator=torch.Generator().manual_seed(0))[:channels]] = 2.0**outliers
        for block in self.blocks:
            assert isinstance(block, Block)
            norm, attention = block.attention
            assert isinstance(attention, Attention)
            make_uneven(norm, attention.qkv, factors)
            make_uneven(block.network[0], block.network[1], factors)
