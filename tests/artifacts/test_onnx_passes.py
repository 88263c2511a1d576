"""Rewrites of ONNX graphs keep what is computed, and are made only where a runtime needs them."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lq_plugin
from lq_plugin import Candidate
from lq_plugin.artifacts import onnx as onnx_format
from lq_plugin.artifacts import openvino as openvino_format
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.artifacts.onnx_passes import (
    PASSES,
    Pass,
    average_globally,
    keep_sums_apart,
    omit_zero_points,
    pad_in_convolutions,
    remove_unused,
    split_biased_gemm,
    transpose_integers,
    transpose_keys,
)
from lq_plugin.errors import ExportError

FEED = np.array([[1, -2], [0.5, 3]], np.float32)


def rewritten(text: str, *changes: Pass, x: Any) -> onnx.ModelProto:
    """A model after passes, which computes the same values as before."""
    before = onnx.parser.parse_model(text)
    model = ir.from_proto(before)
    for change in changes:
        change(model)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    for got, wanted in zip(computed(after, x), computed(before, x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    return after


def computed(model: onnx.ModelProto, x: Any) -> Any:
    """What onnxruntime computes operator by operator, without any rewrites of its own."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


QUANTIZED = "y = QuantizeLinear(z, s, o)"
MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
graph (float[n, 2] x) => ({kind}[n, 3] y)
<float s = {{0.1}}, int8 o = {{0}}, float[2, 3] w = {{1, 2, 3, 4, 5, 6}}, float[3] b = {{10, 20, 30}}>
{{
    q = QuantizeLinear(x, s, o)
    d = DequantizeLinear(q, s, o)
    {body}
}}
"""
CASES = {
    "a float result": ("float", "y = Gemm(d, w, b)", ["Gemm", "Add"]),
    "a float result after an activation": ("float", "z = Gemm(d, w, b) y = Relu(z)", ["Gemm", "Add", "Relu"]),
    "a quantized result": ("int8", f"z = Gemm(d, w, b) {QUANTIZED}", ["Gemm", "QuantizeLinear"]),
    "a result quantized after an activation": (
        "int8",
        f"r = Gemm(d, w, b) z = Relu(r) {QUANTIZED}",
        ["Gemm", "Relu", "QuantizeLinear"],
    ),
    "a float factor": ("float", "y = Gemm(x, w, b)", ["Gemm"]),
    "no bias": ("float", "y = Gemm(d, w)", ["Gemm"]),
    "a scaled bias": ("float", "y = Gemm <beta = 0.5> (d, w, b)", ["Gemm"]),
}


@pytest.mark.parametrize(("kind", "body", "expected"), CASES.values(), ids=CASES)
def test_a_biased_gemm_is_split_where_onnxruntime_would_compute_it_in_float(
    kind: str, body: str, expected: list[str]
) -> None:
    text = MODEL.format(kind=kind, body=body)
    model = rewritten(text, split_biased_gemm, x=FEED)
    assert operators(model)[2:] == expected
    assert model.graph.output == onnx.parser.parse_model(text).graph.output


ZERO_POINTS = """
<ir_version: 10, opset_import: ["" : 21]>
graph (float[n, 2] x) => (float[n, 3] y)
<float s = {{0.1}}, uint8 o = {{0}}, int8[2, 3] w = {{1, 2, 3, 4, 5, 6}}, float[3] t = {{1, 2, 3}},
 int8[3] z = {{{zero}}}>
{{
    q = QuantizeLinear(x, s, o)
    d = DequantizeLinear(q, s, o)
    f = DequantizeLinear <axis = 1> (w, t, z)
    y = MatMul(d, f)
}}
"""


@pytest.mark.parametrize(("zero", "left"), [("0, 0, 0", 2), ("0, 1, 0", 3)])
def test_only_zero_points_of_weights_that_are_all_zero_are_left_out(zero: str, left: int) -> None:
    model = rewritten(ZERO_POINTS.format(zero=zero), omit_zero_points, x=FEED)
    assert [len(node.input) for node in model.graph.node] == [3, 3, left, 2]


PADDED = """
<ir_version: 10, opset_import: ["" : 21]>
graph (float[{image}] x) => ({outputs})
<float[1, {kernel}] w = {{{weights}}}, int64[{size}] p = {{{amounts}}}, float f = {{{fill}}},
 float s = {{0.1}}, uint8 o = {{7}}, uint8 other = {{8}}>
{{
    {body}
}}
"""
PAD = 'a = Pad <mode = "constant"> (x, p, f) '
PAIR = "q = QuantizeLinear(a, s, o) d = DequantizeLinear(q, s, o) "


def padded(body: str, amounts: list[int], fill: float = 0.0, outputs: str = "float[n, 1, {out}] y") -> onnx.ModelProto:
    """Rewrite a convolution with a kernel of 2 over an image of 4 in each dimension, after a padding."""
    size = len(amounts) // 2 - 2
    text = PADDED.format(
        image=", ".join(["2", "1"] + ["4"] * size),
        outputs=outputs.format(out=", ".join("abc"[:size])),
        kernel=", ".join(["1"] + ["2"] * size),
        weights=", ".join(str(number) for number in range(1, 2**size + 1)),
        size=len(amounts),
        amounts=", ".join(map(str, amounts)),
        fill=fill,
        body=body,
    )
    image = np.random.default_rng(0).normal(size=(2, 1, *[4] * size)).astype(np.float32)
    return rewritten(text, pad_in_convolutions, remove_unused, x=image)


@pytest.mark.parametrize("own", ["", "pads = [{pads}]"], ids=["unpadded", "padded"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("pair", ["", PAIR], ids=["float", "quantized"])
def test_a_convolution_takes_over_zero_padding(pair: str, size: int, own: str) -> None:
    amounts = [0, 0, *range(size), 0, 0, *range(1, size + 1)]
    strides = own.format(pads=", ".join(["1"] * 2 * size)) or f"strides = [{', '.join(['2'] * size)}]"
    convolution = f"y = Conv <{strides}> ({'d' if pair else 'a'}, w)"
    model = padded(PAD + pair + convolution, amounts)
    assert operators(model) == [*(["QuantizeLinear", "DequantizeLinear"] if pair else []), "Conv"]
    (pads,) = (list(each.ints) for each in model.graph.node[-1].attribute if each.name == "pads")
    assert pads == [amount + bool(own) for amount in [*range(size), *range(1, size + 1)]]


def test_all_convolutions_of_a_padded_value_take_it_over() -> None:
    model = padded(f"{PAD}{PAIR}b = Conv(d, w) c = Conv(d, w) y = Add(b, c)", [0, 0, 1, 0, 0, 2])
    assert operators(model) == ["QuantizeLinear", "DequantizeLinear", "Conv", "Conv", "Add"]


OTHER_PADDING = {
    "a fill of one": (f"{PAD}y = Conv(a, w)", [0, 0, 1, 0, 0, 1], 1.0),
    "a reflection": ('a = Pad <mode = "reflect"> (x, p) y = Conv(a, w)', [0, 0, 1, 0, 0, 1], 0.0),
    "samples": (f"{PAD}y = Conv(a, w)", [1, 0, 0, 0, 0, 0], 0.0),
    "a cut": (f"{PAD}y = Conv(a, w)", [0, 0, -1, 0, 0, 1], 0.0),
    "a convolution that pads by rule": (f'{PAD}y = Conv <auto_pad = "SAME_UPPER"> (a, w)', [0, 0, 1, 0, 0, 1], 0.0),
    "another reader": (f"{PAD}b = Conv(a, w) c = ReduceMax(a) y = Add(b, c)", [0, 0, 1, 0, 0, 1], 0.0),
    "a pair that moves zero": (
        f"{PAD}q = QuantizeLinear(a, s, o) d = DequantizeLinear(q, s, other) y = Conv(d, w)",
        [0, 0, 1, 0, 0, 1],
        0.0,
    ),
}


@pytest.mark.parametrize(("body", "amounts", "fill"), OTHER_PADDING.values(), ids=OTHER_PADDING)
def test_other_padding_stays(body: str, amounts: list[int], fill: float) -> None:
    assert "Pad" in operators(padded(body, amounts, fill))


def test_padding_that_is_an_output_stays() -> None:
    model = padded(f"{PAD}y = Conv(a, w)", [0, 0, 1, 0, 0, 1], outputs="float[n, 1, {out}] y, float[n, 1, m] a")
    assert operators(model) == ["Pad", "Conv"]


MEAN = """
<ir_version: 10, opset_import: ["" : 21]>
graph (float[n, 2, 3, 2] x) => (float[{shape}] y)
<float s = {{0.5}}, uint8 z = {{7}}, int64[{count}] axes = {{{axes}}}, float[n, 2, 3, 2] d>
{{
    {source}
    m = ReduceMean <keepdims = {keep}> (d, axes)
    p = QuantizeLinear(m, s, z)
    y = DequantizeLinear(p, s, z)
}}
"""
IMAGE_PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
IMAGES = np.arange(36, dtype=np.float32).reshape(3, 2, 3, 2) / 4


def averaged(axes: str, shape: str, keep: int = 0, source: str = IMAGE_PAIR) -> onnx.ModelProto:
    text = MEAN.format(axes=axes, count=axes.count(",") + 1, shape=shape, keep=keep, source=source)
    return rewritten(text, average_globally, remove_unused, x=IMAGES)


@pytest.mark.parametrize(("axes", "shape", "keep"), [("2, 3", "n, 2", 0), ("-1, 2", "n, 2, 1, 1", 1)])
def test_means_over_all_positions_run_on_integers(axes: str, shape: str, keep: int, tmp_path: Path) -> None:
    model = averaged(axes, shape, keep)
    assert "ReduceMean" not in operators(model)
    (tmp_path / "artifact").mkdir()
    onnx.save(model, tmp_path / "artifact/model.onnx")
    kernels = onnx_kernels(tmp_path / "artifact")
    assert kernels["QLinearGlobalAveragePool"] == 1
    assert not {"GlobalAveragePool", "ReduceMean"} & kernels.keys()


@pytest.mark.parametrize(
    ("axes", "shape", "source"),
    [("3", "n, 2, 3", IMAGE_PAIR), ("1, 2, 3", "n", IMAGE_PAIR), ("2, 3", "n, 2", "d = Neg(x)")],
    ids=["some positions", "channels too", "floats"],
)
def test_other_means_stay(axes: str, shape: str, source: str) -> None:
    assert "ReduceMean" in operators(averaged(axes, shape, source=source))


PRODUCTS = """
<ir_version: 10, opset_import: ["" : 21]>
graph (float[n, 2] x) => ({outputs})
<int8[2, 2] w = {{1, 2, 3, 4}}, {scale}>
{{
    d = DequantizeLinear <axis = 0> (w, s, z)
    t = Transpose <perm = [1, 0]> (d)
    h = MatMul(x, t)
    y = MatMul(h, t)
    {other}
}}
"""
SCALES = {
    "per channel": "float[2] s = {0.5, 2}, int8[2] z = {1, 0}",
    "per tensor": "float s = {0.5}, int8 z = {1}",
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_each_product_dequantizes_integers_that_are_stored_as_it_reads_them(scale: str) -> None:
    text = PRODUCTS.format(scale=scale, other="", outputs="float[n, 2] y")
    model = rewritten(text, transpose_integers, remove_unused, x=FEED)
    assert operators(model) == ["DequantizeLinear", "MatMul", "DequantizeLinear", "MatMul"]
    first, second = (node for node in model.graph.node if node.op_type == "DequantizeLinear")
    assert first.input == second.input
    integers = [onnx.numpy_helper.to_array(each).tolist() for each in model.graph.initializer if each.dims == [2, 2]]
    assert integers == [[[1, 3], [2, 4]]]


def test_integers_that_something_else_reads_are_stored_once() -> None:
    text = PRODUCTS.format(
        scale=SCALES["per tensor"], other="r = Gather(w, z2) e = Cast <to = 1> (r)", outputs="float[n, 2] y, float[2] e"
    ).replace("<int8[2, 2] w", "<int64 z2 = {1}, int8[2, 2] w")
    model = rewritten(text, transpose_integers, remove_unused, x=FEED)
    assert Counter(operators(model))["Transpose"] == 1
    assert [each.name for each in model.graph.initializer if each.dims == [2, 2]] == ["w"]


KEYS = """
<ir_version: 10, opset_import: ["" : 21]>
graph (float[n, 3, 2, 4] x) => (float[n, a, b, c] y)
<int64[1] first = {{-9223372036854775808}}, int64[1] before = {{-2}}, int64[1] last = {{-1}},
 int64[1] end = {{9223372036854775807}}, float[n, p, q, r] k>
{{
    {keys}
    s = Shape(k)
    heads = Slice(s, first, before)
    length = Slice(s, before, last)
    width = Slice(s, last, end)
    flat = Concat <axis = 0> (last, length, width)
    r = Reshape(k, flat)
    t = Transpose <perm = {perm}> (r)
    whole = Concat <axis = 0> (heads, {sizes})
    y = Reshape(t, whole)
}}
"""
KEYS_FEED = np.arange(48, dtype=np.float32).reshape(2, 3, 2, 4)
HEADS_FIRST = "k = Transpose <perm = [0, 2, 1, 3]> (x)"


@pytest.mark.parametrize(("keys", "order"), [("k = Identity(x)", [0, 1, 3, 2]), (HEADS_FIRST, [0, 2, 3, 1])])
def test_keys_are_transposed_by_one_operator(keys: str, order: list[int]) -> None:
    text = KEYS.format(keys=keys, perm="[0, 2, 1]", sizes="width, length")
    model = rewritten(text, transpose_keys, remove_unused, x=KEYS_FEED)
    assert operators(model) == (["Transpose"] if keys == HEADS_FIRST else ["Identity", "Transpose"])
    assert list(model.graph.node[-1].attribute[0].ints) == order
    assert [value.name for value in model.graph.output] == ["y"]


def test_keys_that_something_else_reads_keep_their_own_order() -> None:
    text = KEYS.format(keys=HEADS_FIRST, perm="[0, 2, 1]", sizes="width, length")
    text = text.replace("y = Reshape(t, whole)", "z = Reshape(t, whole) k2 = Relu(k) y = MatMul(k2, z)")
    model = rewritten(text, transpose_keys, remove_unused, x=KEYS_FEED)
    assert Counter(operators(model)) == {"Transpose": 2, "Relu": 1, "MatMul": 1}


@pytest.mark.parametrize(
    ("sizes", "left"), [("2, 3, 4, 2", ["Transpose"]), ("2, 3, 2, 4", ["Reshape", "Transpose", "Reshape"])]
)
def test_keys_of_one_length_are_transposed_by_one_operator(sizes: str, left: list[str]) -> None:
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    graph (float[2, 3, 2, 4] x) => (float[a, b, c, d] y) <int64[3] flat = {{-1, 2, 4}}, int64[4] whole = {{{sizes}}}> {{
        r = Reshape(x, flat)
        t = Transpose <perm = [0, 2, 1]> (r)
        y = Reshape(t, whole)
    }}
    """
    assert operators(rewritten(text, transpose_keys, remove_unused, x=KEYS_FEED)) == left


@pytest.mark.parametrize("perm", ["[0, 2, 1]", "[1, 0, 2]"])
def test_what_swaps_no_dimensions_stays(perm: str) -> None:
    text = KEYS.format(keys="k = Identity(x)", perm=perm, sizes="length, width")
    assert operators(rewritten(text, transpose_keys, remove_unused, x=KEYS_FEED)).count("Reshape") == 2


class Mixed(nn.Module):
    """Layers of different rank and as many channels, padding outside of convolutions, a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, 16, 3)
        self.mix = nn.Linear(16, 16)
        self.equal = copy.deepcopy(self.mix)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.pad(x, (0, 1, 0, 1))))
        x = F.relu(self.second(F.pad(x, (1, 2, 0, 1))))
        x = x.flatten(2).transpose(1, 2)
        return self.head(self.equal(F.relu(self.mix(F.relu(self.mix(x))))))


PICTURES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def candidate() -> Candidate:
    torch.manual_seed(0)
    return lq_plugin.quantize(Mixed().eval(), [torch.randn(8, 3, 16, 16)])


def onnx_kernels(folder: Path) -> Counter[str]:
    """Operators of the graph that onnxruntime executes."""
    file = folder.parent / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(file), 4
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(operators(onnx.load(file)))


def openvino_kernels(folder: Path) -> Counter[str]:
    """Kinds of layers that OpenVINO executes, with their precision."""
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ops()]
    return Counter(f"{layer['layerType'].astype(str)} {layer['runtimePrecision'].astype(str)}" for layer in layers)


Read = tuple[Tensor, Counter[str]]


def exported(candidate: Candidate, folder: Path, form: str) -> Read:
    """Output of an artifact, and the kernels that compute it."""
    path = lq_plugin.export(candidate, folder, [form])[form].path
    return lq_plugin.load(path, threads=1)(PICTURES), COUNTS[form](path)


COUNTS = {"onnx": onnx_kernels, "openvino": openvino_kernels}
KERNELS = {
    "onnx": ({"QLinearConv": 2, "MatMulIntegerToFloat": 4}, {"FusedMatMul", "Pad"}),
    "openvino": ({"Convolution u8": 2, "FullyConnected u8": 4}, {"Convolution f32", "FullyConnected f32", "Pad f32"}),
}


@pytest.mark.parametrize("form", KERNELS)
def test_passes_keep_the_outputs_and_bring_every_layer_to_its_int8_kernel(
    form: str, candidate: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    integers, floats = KERNELS[form]
    got, kernels = exported(candidate, tmp_path / "with", form)
    assert {name: kernels[name] for name in integers} == integers
    assert not floats & kernels.keys()
    monkeypatch.setitem(PASSES, FORMATS[form].runtime, (split_biased_gemm,))  # type: ignore[attr-defined]
    wanted, kernels = exported(candidate, tmp_path / "without", form)
    assert floats <= kernels.keys()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_passes_keep_what_a_float_graph_computes(candidate: Candidate, tmp_path: Path) -> None:
    onnx_format.export(candidate.graph, tmp_path)
    (got,) = onnx_format.load(tmp_path, 1)([PICTURES])
    torch.testing.assert_close(got, candidate.graph.module(PICTURES)[0], rtol=1e-4, atol=1e-5)


SUMS = """
<ir_version: 10, opset_import: ["" : 20]>
graph (float[{batch}, 3, 4] x) => (float[{batch}, 3, 4] y)
<float s = {{0.1}}, uint8 o = {{128}}, int8[4, 4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2}},
 int8 z = {{0}}, float[4] b = {{1, 2, 3, 4}}>
{{
    q = QuantizeLinear(x, s, o)
    d = DequantizeLinear(q, s, o)
    f = DequantizeLinear(w, s, z)
    p = MatMul({factor}, f)
    t = Add(p, {term})
    {body}
}}
"""
NORM, GELU = "y = LayerNormalization(t, b, b)", 'g = Gelu <approximate = "none"> (t) y = Identity(g)'
MERGED = {
    "a residual connection": ("2", "d", "x", NORM, "SkipLayerNormalization"),
    "one around a float product": ("2", "x", "x", NORM, "SkipLayerNormalization"),
    "a bias of an integer product, any batch": ("n", "d", "b", GELU, "BiasGelu"),
    "a bias of an integer product, fixed batch": ("2", "d", "b", "y = Relu(t)", "Gemm"),
}


@pytest.mark.parametrize(("batch", "factor", "term", "body", "slow"), MERGED.values(), ids=MERGED)
def test_onnxruntime_merges_no_sum_into_a_slower_kernel(
    batch: str, factor: str, term: str, body: str, slow: str, tmp_path: Path
) -> None:
    text = SUMS.format(batch=batch, factor=factor, term=term, body=body)
    x = np.arange(-12, 12, dtype=np.float32).reshape(2, 3, 4) / 8
    for name, passes, merged in (("before", (), 1), ("after", (keep_sums_apart, remove_unused), 0)):
        folder = tmp_path / name
        folder.mkdir()
        onnx.save(rewritten(text, *passes, x=x), folder / "model.onnx")
        kernels = onnx_kernels(folder)
        assert kernels[slow] == merged
    assert kernels["MatMulIntegerToFloat"] == (factor == "d")


ADDED = {
    "a bias of a float product": ("x", "b", GELU),
    "a residual connection that is read again": ("x", "x", "n = LayerNormalization(t, b, b) y = Mul(n, t)"),
}


@pytest.mark.parametrize(("factor", "term", "body"), ADDED.values(), ids=ADDED)
def test_other_sums_stay(factor: str, term: str, body: str) -> None:
    model = ir.from_onnx_text(SUMS.format(batch="n", factor=factor, term=term, body=body))
    keep_sums_apart(model)
    assert "Sum" not in {node.op_type for node in model.graph}


def test_every_runtime_that_reads_onnx_has_its_passes() -> None:
    readers = {chosen.runtime for chosen in FORMATS.values() if "onnxscript" in chosen.packages}
    assert PASSES.keys() == readers


def test_wide_layers_with_equal_weights_run_on_integers(tmp_path: Path) -> None:
    class Equal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(8, 1100), nn.ReLU(), nn.Linear(1100, 8))  # over 1024 scales
            self.second = copy.deepcopy(self.first)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    candidate = lq_plugin.quantize(Equal().eval(), [torch.randn(8, 8)])
    artifact = lq_plugin.export(candidate, tmp_path, ["openvino"])["openvino"]
    assert [kernel.int8 for kernel in openvino_format.kernels(artifact.path)] == [True] * 4
    assert (artifact.path / "model.bin").stat().st_size < 2 * 8 * 1100 + 2 * 4 * 2 * 1200


def test_a_float_layer_over_sequences_does_not_stop_openvino(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()  # the exporter stores a transposed weight
    candidate = lq_plugin.quantize(net, [torch.randn(4, 5, 8)], lq_plugin.Scheme(algorithms=(), skip=["2"]))
    artifact = lq_plugin.export(candidate, tmp_path, ["openvino"])["openvino"]
    assert sorted(kernel.int8 for kernel in openvino_format.kernels(artifact.path)) == [False, True]


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    class Lgamma(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.lgamma(self.layer(x).abs() + 1)

    candidate = lq_plugin.quantize(Lgamma().eval(), [torch.randn(3, 4)], lq_plugin.Scheme(algorithms=()))
    with pytest.raises(ExportError, match=r"no form of the operator prims\.lgamma; the format 'pt2' has"):
        lq_plugin.export(candidate, tmp_path, ["onnx"])
