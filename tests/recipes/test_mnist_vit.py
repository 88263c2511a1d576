"""The vision transformer of the recipe."""

from __future__ import annotations

import pytest
import torch

from lq_plugin.recipes.mnist_vit.model import Attention, MnistVit


@pytest.mark.parametrize("patch", [4, 7, 14])
def test_images_become_logits(patch: int) -> None:
    assert MnistVit(width=16, depth=1, patch=patch)(torch.randn(3, 1, 28, 28)).shape == (3, 10)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4).eval(), torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
        x = torch.randn(2, 9, 16)
        assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-5)
