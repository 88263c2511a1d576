"""Operators are ranked by what they cost in INT8."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, settled

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.candidate import StaticCandidate
from lq_plugin.errors import CalibrationError, ConfigError
from lq_plugin.search.sensitivity import ranked, sensitivity

PLAIN = Scheme(algorithms=())


@functools.cache
def quantized(name: str) -> tuple[StaticCandidate, Tensor]:
    specimen = ZOO[name]
    pictures = specimen.batch(torch.Generator().manual_seed(0), 16)
    candidate = lq_plugin.quantize(settled(specimen), [pictures], PLAIN)
    assert isinstance(candidate, StaticCandidate)
    assert isinstance(pictures, Tensor)
    return candidate, pictures


@pytest.fixture(scope="module")
def vit() -> tuple[StaticCandidate, Tensor]:
    return quantized("vit")


def ranks(errors: dict[str, float]) -> Tensor:
    return torch.tensor([errors[name] for name in sorted(errors)]).argsort().argsort().double()


@pytest.mark.parametrize("name", ["vit", "preactivation_resnet"])  # the second one ends in a mean over positions
def test_the_estimate_ranks_like_the_truth(name: str) -> None:
    candidate, pictures = quantized(name)
    estimated, true = (
        {each.node: each.error for each in sensitivity(candidate, [pictures], exhaustive=exhaustive)}
        for exhaustive in (False, True)
    )
    assert estimated.keys() == candidate.united.quantized.keys() == true.keys()
    both = torch.stack([ranks(estimated), ranks(true)])
    assert torch.corrcoef(both)[0, 1] >= 0.85
    # single errors add up, to what the artifact loses
    reference, converted = (graph.module(pictures)[0] for graph in (candidate.reference, candidate.converted("torch")))
    noise = (reference - converted).square().sum() / reference.square().sum()
    assert noise / 3 < sum(estimated.values()) < 3 * noise
    assert noise / 3 < sum(true.values()) < 3 * noise


def test_the_layer_that_hurts_comes_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    with torch.no_grad():
        outlier = torch.ones(16).index_fill_(0, torch.tensor([2]), 100.0)
        model[1].weight.mul_(outlier[:, None]), model[1].bias.mul_(outlier), model[2].weight.div_(outlier)
    candidate = lq_plugin.quantize(model, [torch.randn(64, 16)], PLAIN)
    first, *others = sensitivity(candidate, [torch.randn(16, 16)])
    assert (first.name, first.op, first.node) == ("2.linear_2", "linear", "linear_2")
    assert first.share > 0.8
    assert sum(each.share for each in (first, *others)) == pytest.approx(1)
    errors = [each.error for each in (first, *others)]
    assert errors == sorted(errors, reverse=True)


def test_batches_are_those_of_quantize_and_the_seed_decides(vit: tuple[StaticCandidate, Tensor]) -> None:
    candidate, pictures = vit
    found = sensitivity(candidate, [pictures], seed=3)
    assert found == sensitivity(candidate, [(pictures,)], seed=3) == ranked(candidate, [[pictures]], seed=3)
    assert found != sensitivity(candidate, [pictures], seed=4)


def test_what_cannot_be_ranked_is_refused(vit: tuple[StaticCandidate, Tensor]) -> None:
    candidate, pictures = vit
    with pytest.raises(CalibrationError, match="batches: it is empty"):
        sensitivity(candidate, [])
    dynamic = lq_plugin.quantize(nn.Linear(4, 4), [torch.randn(2, 4)], "dynamic")
    with pytest.raises(ConfigError, match="candidate: dynamic is dynamic, which has no fixed ranges"):
        sensitivity(dynamic, [pictures])


def test_embeddings_and_integer_outputs_are_ranked_too() -> None:
    for name in ("tied", "integer_output"):
        specimen = ZOO[name]
        batch = specimen.batch(torch.Generator().manual_seed(0), 4)
        candidate = lq_plugin.quantize(settled(specimen), [batch], PLAIN)
        assert isinstance(candidate, StaticCandidate)
        found = sensitivity(candidate, [batch])
        assert {each.node for each in found} == candidate.united.quantized.keys()
        assert all(each.error > 0 for each in found)


class Upsampling(nn.Module):
    """onnxruntime and torch.compile have no INT8 form of its transposed convolution; OpenVINO has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.last = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.first(x).relu()).relu())


def test_what_was_learnt_for_each_runtime_is_ranked_together() -> None:
    batches = torch.randn(64, 3, 8, 8).split(32)
    plain = lq_plugin.quantize(Upsampling().eval(), batches, PLAIN)
    assert isinstance(plain, StaticCandidate)
    own = dict(plain.apart())
    learnt = replace(own.pop("onnxruntime"), variants=own)
    found = [{each.op for each in sensitivity(candidate, batches)} for candidate in (plain, learnt)]
    assert found[0] == found[1] == {"conv2d", "conv_transpose2d"}
    alone = sensitivity(learnt.on("onnxruntime"), batches)
    assert {each.op for each in alone} == {"conv2d"}
