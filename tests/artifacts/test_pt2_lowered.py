"""In eager torch a large ``.pt2`` computes on integers, on oneDNN's INT8 kernels and for any batch size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import lq_plugin
from lq_plugin import cpu
from lq_plugin.artifacts import pt2, pt2_lowered
from lq_plugin.artifacts.pt2_rounding import ROUND, rounding_at_once
from lq_plugin.evaluation.fidelity import max_difference

vnni = pytest.mark.skipif(not cpu.has_vnni(), reason="its INT8 kernels may saturate")


class Mixed(nn.Module):
    """Convolutions of each kind, a residual sum, and products of two and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.last = nn.Conv2d(8, 16, 3, stride=2)
        self.tokens = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.last(x + self.depthwise(x)).flatten(2).transpose(1, 2)
        return self.head(self.tokens(x).mean(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    candidate = lq_plugin.quantize(Mixed().eval(), [torch.randn(4, 3, 8, 8)], lq_plugin.Scheme("static", algorithms=()))
    return lq_plugin.export(candidate, tmp_path_factory.mktemp("mixed"), ["pt2"])["pt2"].path


@vnni
def test_layers_become_int8_kernels_that_compute_the_same_but_for_rounding(folder: Path) -> None:
    module = pt2.load_module(folder)
    made = pt2_lowered.lowered(module)
    kernels = Counter(str(node.target) for node in made.graph.nodes)
    assert kernels["onednn.qconv_pointwise.default"] == 3
    assert kernels["onednn.qlinear_pointwise.default"] == 2
    x = torch.randn(7, 3, 8, 8)
    (given,), (wanted,) = made(x), rounding_at_once(module)(x)
    assert max_difference(given, wanted) < 0.02 * wanted.abs().max()
    assert torch.equal(made(x[:1])[0], given[:1])


class Residuals(nn.Module):
    """Residual sums around a convolution and linear layers, of the input too; a value is read again through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.relu()
        hidden = nn.functional.gelu(self.first(tokens) + tokens)
        rows = hidden.reshape(-1, 4)
        return self.conv(x) + x, self.down(nn.functional.gelu(self.up(rows))) + rows, hidden.mean(-1)


@vnni
def test_residual_sums_change_no_tensor_that_others_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = (torch.randn(4, 4, 4, 4), torch.randn(4, 3, 4))
    candidate = lq_plugin.quantize(Residuals().eval(), [example], lq_plugin.Scheme("static", algorithms=()))
    module = pt2.load_module(lq_plugin.export(candidate, tmp_path, ["pt2"])["pt2"].path)
    made = pt2_lowered.lowered(module)
    assert [str(node.target) for node in made.graph.nodes].count("onednn.qlinear_pointwise.binary") == 2
    given = (torch.randn(7, 4, 4, 4), torch.randn(7, 3, 4))
    before = [tensor.clone() for tensor in given]
    first = [output.clone() for output in made(*given)]
    assert all(map(torch.equal, given, before))
    assert all(map(torch.equal, first, made(*given)))
    for output, wanted in zip(first, rounding_at_once(module)(*before), strict=True):
        assert max_difference(output, wanted) < 0.02 * wanted.abs().max()


def test_a_graph_that_writes_to_its_input_is_refused() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.relu_.default(x)  # type: ignore[no-any-return]

    module = fx.symbolic_trace(Writes())
    next(iter(module.graph.nodes)).meta["val"] = torch.ones(1)
    with pytest.raises(NotImplementedError, match="writes to a tensor"):
        pt2_lowered.lowered(module)


def test_a_small_graph_is_not_worth_it(folder: Path) -> None:
    assert not pt2_lowered.pays(pt2.load_module(folder))


def test_a_graph_that_torch_cannot_lower_runs_on_floats_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pairs, qparams = torch.ops.quantized_decomposed, (0.1, 0, -128, 127, torch.int8)
            integers = pairs.quantize_per_tensor.default(x, *qparams)
            return pairs.dequantize_per_tensor.default(integers, *qparams)  # type: ignore[no-any-return]

    monkeypatch.setattr(pt2_lowered, "pays", lambda module: True)
    made = pt2._eager(fx.symbolic_trace(Bare()), Path("static/pt2"))  # says nothing of its input's shape
    assert [node.target for node in made.graph.nodes].count(ROUND) == 1
    assert "static/pt2 runs on floats, which is slower: torch cannot lower it (KeyError: 'val')" in caplog.text
