"""Globals of torch are replaced for a while, and put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from lq_plugin.graph.torch_patches import onnx_functions_parsed_once, operators_found_once

exported: Any = torch._export.utils


def functions(registry: ONNXRegistry) -> dict[Any, list[Any]]:
    return {target: [each.onnx_function for each in found] for target, found in registry.functions.items()}


def made(registry: ONNXRegistry) -> set[int]:
    return {id(each) for found in registry.functions.values() for each in found}


def test_every_export_has_a_registry_of_its_own_with_functions_that_are_parsed_once() -> None:
    before = ONNXRegistry.__dict__["from_torchlib"]
    with onnx_functions_parsed_once():
        first = ONNXRegistry.from_torchlib()
        first.register_op(torch.ops.aten.relu.default, lambda x: x)
        second = ONNXRegistry().from_torchlib()
        other = ONNXRegistry.from_torchlib(opset_version=18)
        with torch.library._scoped_library("lq_added", "DEF") as library:
            library.define("later(Tensor x) -> Tensor")  # whose function a kept registry could lack
            third = ONNXRegistry.from_torchlib()
    assert ONNXRegistry.__dict__["from_torchlib"] is before
    assert made(second) < made(first)
    assert len(first.functions["aten::relu"]) == len(second.functions["aten::relu"]) + 1
    assert not made(third) <= made(first)
    assert other.opset_version == 18
    assert functions(second) == functions(ONNXRegistry.from_torchlib())


def test_the_dispatcher_is_asked_for_operators_once(monkeypatch: pytest.MonkeyPatch) -> None:
    operators, asked = exported._collect_all_valid_cia_ops(), list[str]()
    get = torch._C._dispatch_get_registrations_for_dispatch_key

    def noted(key: str) -> list[str]:
        asked.append(key)
        return list(get(key))

    monkeypatch.setattr(torch._C, "_dispatch_get_registrations_for_dispatch_key", noted)
    before = exported._materialize_cpp_cia_ops
    with operators_found_once():
        assert exported._collect_all_valid_cia_ops() == operators
    assert asked == ["CompositeImplicitAutograd"]
    assert exported._materialize_cpp_cia_ops is before
