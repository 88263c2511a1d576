"""Attention layers in graphs compute what torch's own forward does, with a linear layer each for q, k and v."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin.artifacts import onnx as onnx_format
from lq_plugin.artifacts import openvino as openvino_format
from lq_plugin.graph import attention
from lq_plugin.graph.capture import _decompositions
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import module_path, operator_type
from lq_plugin.graph.placement import place, place_dynamic
from lq_plugin.graph.prepare import prepare
from lq_plugin.graph.torch_patches import attention_in_parts, fast_path_off
from lq_plugin.runtimes import RUNTIMES
from lq_plugin.scheme import Scheme

N, L, S, E, HEADS = 2, 3, 4, 12, 3  # samples, queries, keys, width
MASKS = {
    "none": lambda: None,
    "bool": lambda: torch.rand(L, S) > 0.6,
    "numbers": lambda: torch.randn(L, S),
    "bool by head": lambda: torch.rand(N * HEADS, L, S) > 0.6,
    "numbers by head": lambda: torch.randn(N * HEADS, L, S),
    "wholly masked": lambda: torch.tensor([[True] * S, [False] * S, [True, False] * (S // 2)]),
}
PADDING = {
    "none": lambda: None,
    "bool": lambda: torch.arange(S) >= torch.tensor([[2], [S]]),
    "numbers": lambda: torch.randn(N, S),
    "wholly masked": lambda: torch.arange(S) >= torch.tensor([[0], [S]]),
}
LAYERS: dict[str, dict[str, Any]] = {
    "batch first": {"batch_first": True},
    "time first": {},
    "other keys and values": {"kdim": 5, "vdim": 7, "batch_first": True},
    "no bias": {"bias": False},
    "longer keys": {"add_bias_kv": True, "add_zero_attn": True},
    "dropout": {"dropout": 0.5},
}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad(), fast_path_off():
        yield


def layer_of(options: dict[str, Any]) -> nn.MultiheadAttention:
    layer = nn.MultiheadAttention(E, HEADS, **options).eval()
    for parameter in layer.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))  # biases are zero at first
    return layer


def inputs_of(options: dict[str, Any], batched: bool = True) -> list[Tensor]:
    widths = (E, options.get("kdim", E), options.get("vdim", E))
    samples = [torch.randn(N, length, width) for length, width in zip((L, S, S), widths, strict=True)]
    if not batched:
        return [x[0] for x in samples]
    return samples if options.get("batch_first") else [x.transpose(0, 1) for x in samples]


def check_same(layer: nn.MultiheadAttention, inputs: list[Tensor], **options: Any) -> None:
    """Compare output and weights with those of torch's own forward, for every way of asking for weights."""
    for asked in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        wanted = layer(*inputs, **asked, **options)
        got = attention.forward(layer, *inputs, **asked, **options)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning")
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_the_results_are_those_of_torch(options: dict[str, Any]) -> None:
    layer, inputs = layer_of(options), inputs_of(options)
    for mask in MASKS.values():
        for padding in PADDING.values():
            check_same(layer, inputs, attn_mask=mask(), key_padding_mask=padding())


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask:UserWarning")
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_the_results_of_a_single_sample_are_those_of_torch(options: dict[str, Any]) -> None:
    layer, inputs = layer_of(options), inputs_of(options, batched=False)
    for mask in MASKS.values():
        for padding in PADDING.values():
            kept, padded = mask(), padding()
            kept = kept[:HEADS] if kept is not None and kept.dim() == 3 else kept
            check_same(layer, inputs, attn_mask=kept, key_padding_mask=None if padded is None else padded[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("padding", ["none", "numbers"])
def test_causal_attention_is_that_of_torch(batch_first: bool, padding: str) -> None:
    layer = layer_of({"batch_first": batch_first})
    x = torch.randn((N, S, E) if batch_first else (S, N, E))
    mask = nn.Transformer.generate_square_subsequent_mask(S)
    check_same(layer, [x, x, x], attn_mask=mask, is_causal=True, key_padding_mask=PADDING[padding]())
    with pytest.raises(RuntimeError, match="Need attn_mask if specifying the is_causal hint"):
        attention.forward(layer, x, x, x, is_causal=True)


class Attending(nn.Module):
    """One layer, called as its user likes."""

    def __init__(self, layer: nn.Module, **options: Any) -> None:
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Any:
        output, weights = self.layer(x, x, x, key_padding_mask=padding, **self.options)
        return output if weights is None else (output, weights)


def operators(graph: Graph) -> Counter[str]:
    return Counter(operator_type(node) for node in graph.module.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("options", [{"need_weights": False}, {"average_attn_weights": False}])
def test_a_graph_takes_other_batches_and_padding(options: dict[str, Any]) -> None:
    model = Attending(layer_of({"batch_first": True}), **options)
    graph = prepare(model, [torch.randn(3, S, E), torch.zeros(3, S, dtype=torch.bool)])
    for size in (1, 2, 5):
        x, padding = torch.randn(size, S, E), torch.rand(size, S) > 0.7
        torch.testing.assert_close(
            graph.signature.unflatten(graph.module(x, padding)), model(x, padding), rtol=1e-5, atol=1e-6, equal_nan=True
        )
    assert operators(graph)["linear"] == 4
    assert nn.MultiheadAttention.forward is attention._forward


def test_the_graph_is_the_same_whatever_layout_a_device_gives_attention() -> None:
    def captured(device: str) -> list[str]:
        layer = nn.MultiheadAttention(E, HEADS, batch_first=True, device=device).eval()
        model = Attending(layer, need_weights=False)
        with attention_in_parts():
            program = torch.export.export(model, (torch.empty(S, S, E, device=device),))
        return [f"{node.name} {node.target}" for node in program.run_decompositions(_decompositions()).graph.nodes]

    assert captured("meta") == captured("cpu")


def test_weights_that_are_not_used_are_not_computed_apart() -> None:
    class First(Attending):
        def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
            return super().forward(x, padding)[0]

    found = operators(prepare(First(layer_of({"batch_first": True})), [torch.randn(2, S, E)]))
    assert (found["matmul"], found["softmax"], found["mean"]) == (2, 1, 0)


def test_a_forward_of_ones_own_is_captured_as_it_is() -> None:
    class Twice(nn.MultiheadAttention):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output, weights = super().forward(*args, **kwargs)
            return 2 * output, weights

    model, x = Attending(Twice(E, HEADS).eval(), need_weights=False), torch.randn(2, S, E)
    graph = prepare(model, [x])
    torch.testing.assert_close(graph.module(x)[0], model(x))
    assert operators(graph)["linear"] == 4


def test_hooks_of_the_output_projection_are_not_called_as_in_torch() -> None:
    model, x = Attending(layer_of({}), need_weights=False), torch.randn(S, 2, E)
    model.layer.out_proj.register_forward_hook(lambda layer, args, output: output + 1)  # type: ignore[union-attr]
    torch.testing.assert_close(prepare(model, [x]).module(x)[0], model(x))


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()


@pytest.fixture(scope="module")
def graph(encoder: nn.Module) -> Graph:
    return prepare(encoder, [torch.ones(2, 6, 32)])


def test_products_have_the_names_of_their_modules(graph: Graph) -> None:
    found = Counter(module_path(node) for node in graph.module.graph.nodes if operator_type(node) == "linear")
    layer = {"self_attn": 3, "self_attn.out_proj": 1, "linear1": 1, "linear2": 1}
    assert found == {f"layers.0.{name}": count for name, count in layer.items()}


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ({"skip": ["layers.0.self_attn"]}, 2),
        ({"skip": ["*.out_proj"]}, 5),
        ({"only": ["*.self_attn"]}, 4),
        ({"only": ["*.out_proj"]}, 1),
    ],
)
def test_patterns_choose_among_the_products_of_attention(
    patterns: dict[str, list[str]], left: int, graph: Graph
) -> None:
    assert {len(place(graph, Scheme(**patterns), runtime).quantized) for runtime in RUNTIMES} == {left}
    assert len(place_dynamic(graph, Scheme("dynamic", **patterns), "onnxruntime").quantized) == left


KERNELS = {
    "onnx": (onnx_format.kernels, "MatMulIntegerToFloat"),
    "openvino": (openvino_format.kernels, "FullyConnected"),
}


def test_an_encoder_is_computed_on_integers_with_four_transpositions_a_layer(
    encoder: nn.Module, tmp_path: Path
) -> None:
    candidate = lq_plugin.quantize(encoder, [torch.randn(4, 6, 32) for _ in range(2)])
    made = lq_plugin.export(candidate, tmp_path, list(KERNELS))
    for name, (kernels, kind) in KERNELS.items():
        assert Counter(kernel.type for kernel in kernels(made[name].path) if kernel.int8) == {kind: 6}
    exported = Counter(node.op_type for node in onnx.load(made["onnx"].path / "model.onnx").graph.node)
    assert exported["Transpose"] == 4  # queries, keys, values and the heads' results
    assert not exported.keys() & {"Shape", "Slice", "Gather", "Squeeze"}
