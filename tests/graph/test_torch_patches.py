"""Globals of torch are replaced for a while, and put back."""

from __future__ import annotations

from torch.onnx._internal.exporter import _registration

from lq_plugin.graph.torch_patches import onnx_functions_parsed_once


def test_the_exporters_functions_are_parsed_once() -> None:
    before = _registration.onnxscript_apis
    with onnx_functions_parsed_once():
        first = _registration.onnxscript_apis.get_torchlib_ops()
    with onnx_functions_parsed_once():
        assert _registration.onnxscript_apis.get_torchlib_ops() is first
    assert _registration.onnxscript_apis is before
    assert [each.qualified_name for each in first] == [each.qualified_name for each in before.get_torchlib_ops()]
