"""Outliers move from activations into weights: the float function stays the same, and INT8 is more accurate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.algorithms.smoothing import smoothing
from lq_plugin.candidate import StaticCandidate
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.graph.channels import sites
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import attribute

PLAIN = Scheme(algorithms=())


class Block(nn.Module):
    """A transformer block, pre-norm or post-norm, with outlier channels in its norms."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm, self.last_norm = nn.LayerNorm(32), nn.LayerNorm(32)
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 5)
        with torch.no_grad():
            outliers = torch.ones(32).index_fill_(0, torch.tensor([3, 17]), 30.0)
            for norm, readers in ((self.norm, (self.q, self.k, self.v, self.up)), (self.last_norm, (self.head,))):
                norm.weight.mul_(outliers), norm.bias.copy_(0.1 * outliers)
                for reader in readers:
                    reader.weight.div_(outliers)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.norm(x))
        else:
            x = self.norm(x + self.down(F.relu(self.up(x))))
            x = x + self.down(F.gelu(self.up(x))) + self.attend(x)
        return self.head(self.last_norm(x))


class FeedForward(nn.Module):
    """The second layer reads a ReLU alone; the norm is also read by the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        with torch.no_grad():
            outliers = torch.ones(32).index_fill_(0, torch.tensor([3, 17]), 30.0)
            self.norm.weight.mul_(outliers), self.up.weight.div_(outliers)
            self.up.weight[::9] *= 20
            self.down.weight[:, ::9] /= 20

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return 0.01 * x + self.down(F.relu(self.up(x)))


@dataclass(frozen=True)
class Case:
    candidate: StaticCandidate
    smoothed: StaticCandidate
    calls: list[list[Tensor]]
    held_out: list[Tensor]

    def sqnr(self, graph: Graph) -> float:
        sqnr = SignalToQuantizationNoise()
        with torch.no_grad():
            sqnr.update(graph.module(*self.held_out), self.candidate.reference.module(*self.held_out))
        return sqnr.compute().item()

    def multiplications(self) -> list[str]:
        floats = self.smoothed.placed("openvino").float_ops
        return [op.name for op in floats if op.reason == "inserted by smoothing"]


def case(model: nn.Module, *shape: int, scheme: Scheme | None = None) -> Case:
    generator = torch.Generator().manual_seed(1)
    calls = [[torch.randn(8, *shape, generator=generator)] for _ in range(4)]
    candidate = lq_plugin.quantize(model.eval(), [x for (x,) in calls], scheme or PLAIN)
    assert isinstance(candidate, StaticCandidate)
    held_out = [torch.randn(16, *shape, generator=generator)]
    return Case(candidate, smoothing(candidate, calls, 0), calls, held_out)


@pytest.fixture(scope="module")
def norms_first() -> Case:
    torch.manual_seed(0)
    return case(Block(norm_first=True), 6, 32)


@pytest.fixture(scope="module")
def feed_forward() -> Case:
    torch.manual_seed(0)
    return case(FeedForward(), 6, 32)


def test_it_computes_the_same_with_better_integers(norms_first: Case, feed_forward: Case) -> None:
    for each in (norms_first, feed_forward):
        assert each.sqnr(each.smoothed.graph) > 100
        for runtime in ("onnxruntime", "openvino"):
            assert each.sqnr(each.smoothed.converted(runtime)) > each.sqnr(each.candidate.converted(runtime)) + 3


def test_a_norm_absorbs_the_scale_of_all_that_reads_it(norms_first: Case) -> None:
    found = sites(norms_first.candidate.graph, norms_first.candidate.united)
    absorbed = {site.absorber: [reader.name for reader in site.readers] for site in found if site.absorber}
    assert absorbed == {"layer_norm": ["linear", "linear_1", "linear_2"], "layer_norm_1": ["linear_4"]}
    smoothed, plain = norms_first.smoothed, norms_first.candidate
    assert not any(".q." in name or ".head." in name for name in norms_first.multiplications())
    assert {op.name for op in smoothed.placed("torch").quantized.values()} == {
        op.name for op in plain.placed("torch").quantized.values()
    }
    before, after = (constants(each.graph, "layer_norm")[0] for each in (plain, smoothed))
    assert after.max() / after.min() < before.max() / before.min() / 3


def constants(graph: Graph, name: str) -> list[Tensor]:
    node = next(node for node in graph.module.graph.nodes if node.name == name)
    return [attribute(graph.module, each) for each in node.all_input_nodes if each.op == "get_attr"]


def test_a_sum_keeps_what_it_reads(feed_forward: Case) -> None:
    """The multiplication is inserted before the linear layer alone, and listed in its module."""
    for before, after in zip(
        *(constants(each.graph, "layer_norm") for each in (feed_forward.candidate, feed_forward.smoothed)), strict=True
    ):
        assert torch.equal(before, after)
    assert feed_forward.multiplications() == ["up.lq_mul"]
    multiplied = next(n for n in feed_forward.smoothed.graph.module.graph.nodes if n.name == "lq_mul")
    assert [user.name for user in multiplied.users] == ["linear"]


def test_a_linear_layer_absorbs_through_a_relu(feed_forward: Case) -> None:
    found = sites(feed_forward.candidate.graph, feed_forward.candidate.united)
    assert [site.absorber for site in found] == [None, "linear"]
    rows = [
        constants(each.graph, "linear")[0].abs().amax(1) for each in (feed_forward.candidate, feed_forward.smoothed)
    ]
    assert rows[1][::9].mean() / rows[1].mean() < 0.7 * rows[0][::9].mean() / rows[0].mean()


def test_only_what_changed_is_observed_anew(norms_first: Case) -> None:
    before, after = (each.statistics for each in (norms_first.candidate, norms_first.smoothed))
    changed = {name for name in after if before.get(name) is not after[name]}
    nodes = {node.name for node in norms_first.smoothed.graph.module.graph.nodes}
    assert {"layer_norm", "layer_norm_1"} <= changed <= nodes
    assert changed - before.keys() == {name for name in nodes if name.startswith("lq_mul")}
    assert before.keys() - after.keys() == set()
    assert changed <= norms_first.smoothed.learnt_ranges.keys()
    counts = [statistic["layer_norm"]["counts"].sum() for statistic in (before, after)]
    assert counts[0] == counts[1] == 4 * 8 * 6 * 32
    assert after["layer_norm"]["limit"] < before["layer_norm"]["limit"]


def test_it_is_deterministic_and_changes_nothing_in_place(norms_first: Case) -> None:
    digest = norms_first.candidate.graph.digest
    again = smoothing(norms_first.candidate, norms_first.calls, 0)
    assert again.graph.digest == norms_first.smoothed.graph.digest != digest
    assert again.learnt_ranges == norms_first.smoothed.learnt_ranges
    assert norms_first.candidate.graph.digest == digest
    assert norms_first.candidate.reference is norms_first.smoothed.reference
    assert norms_first.sqnr(norms_first.candidate.graph) == float("inf")


def test_there_is_nothing_to_do_in_a_cnn(norms_first: Case) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 4))
    pictures = torch.randn(4, 3, 8, 8)
    candidate = lq_plugin.quantize(model.eval(), [pictures], PLAIN)
    assert isinstance(candidate, StaticCandidate)
    assert smoothing(candidate, [[pictures]], 0) is candidate
    assert smoothing(norms_first.candidate, [], 0) is norms_first.candidate


def test_weights_that_are_shared_or_learnt_stay(norms_first: Case) -> None:
    first = nn.Linear(8, 8)
    tied = case(nn.Sequential(first, nn.Sigmoid(), first, nn.Sigmoid(), nn.Linear(8, 8)), 8).candidate
    assert [[reader.name for reader in site.readers] for site in sites(tied.graph, tied.united)] == [["linear_2"]]
    learnt = replace(norms_first.candidate, weight_scales={"linear": torch.ones(32)})
    kept = smoothing(learnt, norms_first.calls, 0)
    assert torch.equal(constants(kept.graph, "linear")[0], constants(learnt.graph, "linear")[0])
    assert torch.equal(constants(kept.graph, "layer_norm")[0], constants(learnt.graph, "layer_norm")[0])


def test_constant_matrices_are_linear_layers_too() -> None:
    class Matrices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            outliers = torch.ones(16).index_fill_(0, torch.tensor([2]), 50.0)
            self.outliers = nn.Parameter(outliers)
            self.first, self.second = (nn.Parameter(torch.randn(16, 16) / outliers[:, None]) for _ in range(2))
            self.bias = nn.Parameter(torch.randn(16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, (x @ self.first).tanh() * self.outliers, self.second)

    torch.manual_seed(0)
    made = case(Matrices(), 16)
    assert made.sqnr(made.smoothed.graph) > 100
    assert made.sqnr(made.smoothed.converted("openvino")) > made.sqnr(made.candidate.converted("openvino")) + 3


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(weight_granularity="per_tensor", weight_symmetric=False, algorithms=()),
        Scheme(activation_dtype="int8", activation_symmetric=True, reduce_range=True, observer="minmax", algorithms=()),
    ],
    ids=["per_tensor", "7_bits"],
)
def test_it_searches_for_the_integers_of_the_scheme(scheme: Scheme) -> None:
    torch.manual_seed(0)
    made = case(FeedForward(), 6, 32, scheme=scheme)
    assert made.sqnr(made.smoothed.graph) > 100
    for runtime in ("onnxruntime", "openvino"):
        assert made.sqnr(made.smoothed.converted(runtime)) > made.sqnr(made.candidate.converted(runtime)) + 3


def test_samples_with_nan_leave_everything_as_it_is(norms_first: Case) -> None:
    assert smoothing(norms_first.candidate, [[torch.full((4, 6, 32), torch.nan)]], 0) is norms_first.candidate
