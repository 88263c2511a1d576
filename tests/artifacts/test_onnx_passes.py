"""Rewrites of ONNX graphs keep what is computed, and are made only where a runtime needs them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from lq_plugin.artifacts.base import FORMATS
from lq_plugin.artifacts.onnx_passes import PASSES, split_biased_gemm

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
    before = onnx.parser.parse_model(MODEL.format(kind=kind, body=body))
    model = ir.from_proto(before)
    split_biased_gemm(model)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node][2:] == expected
    assert after.graph.output == before.graph.output
    feed = {"x": np.array([[1, -2], [0.5, 3]], np.float32)}
    wanted, got = (ReferenceEvaluator(each).run(None, feed) for each in (before, after))
    np.testing.assert_array_equal(got, wanted)


def test_every_runtime_that_reads_onnx_has_its_passes() -> None:
    readers = {chosen.runtime for chosen in FORMATS.values() if "onnxscript" in chosen.packages}
    assert PASSES.keys() == readers
