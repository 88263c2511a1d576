"""For which CPUs an artifact is made: what that decides, what is written of it, and what load says."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import DynamicQuantization, Scheme, StaticQuantization, cpu
from lq_plugin.artifacts import onnx_dynamic, onnx_gru
from lq_plugin.artifacts.description import read
from lq_plugin.errors import ConfigError

WITH_VNNI, WITHOUT = ["avx2", "avx512_vnni"], ["avx2"]


class Layers(nn.Module):
    """A linear layer and, where asked, every recurrent one."""

    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layers = nn.ModuleList([nn.LSTM(8, 8), nn.GRU(8, 8)] if recurrent else [])
        self.cells = nn.ModuleList([nn.LSTMCell(8, 8), nn.GRUCell(8, 8), nn.RNNCell(8, 8)] if recurrent else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)[0]
        if not len(self.cells):
            return x
        ends = [cell(x[-1]) for cell in self.cells]
        return torch.cat([end[0] if isinstance(end, tuple) else end for end in ends], 1)


def candidate(scheme: Scheme, recurrent: bool = False) -> lq_plugin.Candidate:
    torch.manual_seed(0)
    model = Layers(recurrent).eval()
    return lq_plugin.quantize(model, [torch.randn(*([5, 3, 8] if recurrent else [4, 8]))], scheme)


def in_onnx(graph: Any) -> Iterator[np.ndarray[Any, Any]]:
    """8-bit constants of a graph and of the steps inside it."""
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            yield onnx.numpy_helper.to_array(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from in_onnx(attribute.g)


def in_openvino(folder: Path) -> Iterator[np.ndarray[Any, Any]]:
    import openvino as ov

    for node in ov.Core().read_model(folder / "model.xml").get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8:
            yield node.data


def weights(folder: Path, format_name: str) -> list[np.ndarray[Any, Any]]:
    """The integers of an artifact's matrices, read from its files."""
    if format_name == "onnx":
        found = list(in_onnx(onnx.load(folder / "model.onnx").graph))
    elif format_name == "openvino":
        found = list(in_openvino(folder))
    elif format_name == "pt2":
        state = torch.export.load(folder / "model.pt2").state_dict
        found = [tensor.numpy() for tensor in state.values() if tensor.dtype == torch.int8]
    else:
        state = safetensors.torch.load_file(folder / "model.safetensors")
        found = [tensor.numpy() for tensor in state.values() if tensor.dtype == torch.int8]
    return [array for array in found if array.ndim > 1 and array.any()]  # zero points are 0


@pytest.fixture
def integer_grus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the INT8 form of a GRU, however fast it is."""
    monkeypatch.setattr(onnx_gru, "LEAST_SPEEDUP", 0.0)
    monkeypatch.setattr(onnx_gru, "_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("method", "recurrent", "granularity", "count"),
    [
        ("static", False, "per_channel", {"onnx": 1, "openvino": 1, "pt2": 1}),
        ("dynamic", False, "per_channel", {"onnx": 1, "openvino": 1, "torch": 1}),
        ("dynamic", True, "per_channel", {"onnx": 11, "torch": 11}),
        ("dynamic", True, "per_tensor", {"onnx": 11, "torch": 11}),
    ],
)
def test_weights_for_any_cpu_use_seven_bits_in_every_format(
    method: str, recurrent: bool, granularity: str, count: dict[str, int], tmp_path: Path, integer_grus: None
) -> None:
    scheme = Scheme(method, targets_cpu="any", weight_granularity=granularity)
    made = lq_plugin.export(candidate(scheme, recurrent), tmp_path, list(count))
    found = {name: weights(artifact.path, name) for name, artifact in made.items()}
    assert {name: len(arrays) for name, arrays in found.items()} == count
    for name, arrays in found.items():
        for array in arrays:
            assert np.abs(array.astype(int)).max() == 63, name


@pytest.mark.parametrize("flags", [WITH_VNNI, WITHOUT])
@pytest.mark.parametrize("given", [None, True, False])
def test_the_cpu_class_decides_where_reduce_range_does_not(
    flags: list[str], given: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "isa", lambda: flags)
    decided = {"this": flags == WITHOUT, "any": True, "vnni": False}
    for targets_cpu, seven_bits in decided.items():
        for callback in (StaticQuantization, DynamicQuantization):
            options = callback(reduce_range=given, targets_cpu=targets_cpu).options()
            expected = seven_bits if given is None else given
            assert (options["targets_cpu"], options["reduce_range"]) == (targets_cpu, expected)


def test_an_unknown_cpu_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"targets_cpu: .*'vnnni'.*'vnni'"):
        Scheme(targets_cpu="vnnni")


def warnings_of_loading(path: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lq_plugin"):
        for _ in range(2):
            lq_plugin.load(path, factory=lambda: Layers(False))
    return [record.getMessage() for record in caplog.records]


def test_load_says_once_that_this_cpu_saturates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = {}
    for targets_cpu in ("vnni", "any"):
        static = candidate(Scheme(targets_cpu=targets_cpu))
        paths[targets_cpu] = lq_plugin.export(static, tmp_path / targets_cpu, ["pt2"])["pt2"].path
    dynamic = candidate(Scheme("dynamic", targets_cpu="vnni"))
    paths["torch"] = lq_plugin.export(dynamic, tmp_path, ["torch"])["torch"].path
    table = lq_plugin.quantize(nn.Embedding(4, 2), [torch.tensor([[1, 2]])], Scheme(targets_cpu="vnni"))
    paths["table"] = lq_plugin.export(table, tmp_path / "table", ["pt2"])["pt2"].path
    # torch's layers take 7 bits of what goes in where 8 could saturate, and nothing is multiplied with a table.
    assert {name: read(path).saturates_without_vnni for name, path in paths.items()} == {
        "vnni": True,
        "any": False,
        "torch": False,
        "table": False,
    }
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "isa", lambda: WITH_VNNI)
    assert warnings_of_loading(paths["vnni"], caplog) == []
    monkeypatch.setattr(cpu, "isa", lambda: WITHOUT)
    (said,) = warnings_of_loading(paths["vnni"], caplog)
    assert str(paths["vnni"]) in said
    assert "targets_cpu='any'" in said
    assert warnings_of_loading(paths["any"], caplog) == warnings_of_loading(paths["torch"], caplog) == []


def test_an_artifact_of_before_is_read_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = lq_plugin.export(candidate(Scheme("dynamic")), tmp_path, ["torch"])["torch"].path
    rewrite(path, lambda content: [content.pop(name) for name in ("saturates_without_vnni", "measured")])
    monkeypatch.setattr(cpu, "isa", lambda: WITHOUT)
    assert (read(path).saturates_without_vnni, read(path).measured) == (None, {})
    assert warnings_of_loading(path, caplog) == []


def rewrite(path: Path, change: Any) -> None:
    """Change what ``artifact.json`` says, as somebody would who knows how its checksum is made."""
    content = json.loads((path / "artifact.json").read_text())
    del content["sha256"]
    change(content)
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (path / "artifact.json").write_text(json.dumps(content, indent=1))


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def gru() -> lq_plugin.Candidate:
    torch.manual_seed(0)
    return lq_plugin.quantize(nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 6)), [torch.randn(5, 3, 4)], "dynamic")


def test_exporting_again_gives_the_same_bytes_whatever_would_be_measured_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_gru, "_SECONDS", 0.0)
    monkeypatch.setattr(onnx_gru, "LEAST_SPEEDUP", float("inf"))
    first = gru()
    path = lq_plugin.export(first, tmp_path, ["onnx"])["onnx"].path
    before = contents(path)
    assert [decision.int8 for decision in read(path).measured.values()] == [False]
    monkeypatch.setattr(onnx_gru, "LEAST_SPEEDUP", 0.0)
    assert contents(lq_plugin.export(first, tmp_path / "elsewhere", ["onnx"])["onnx"].path) == before
    lq_plugin.export(gru(), tmp_path, ["onnx"])  # as a later process would
    assert contents(path) == before
    model = onnx_ir.load(path / "model.onnx")
    digests = {onnx_dynamic._digest_of_measuring(model, first, threads) for threads in (None, None, 1, 2)}
    monkeypatch.setattr(cpu, "isa", lambda: ["another"])
    assert len(digests | {onnx_dynamic._digest_of_measuring(model, first, None)}) == 4  # each is another question


@pytest.mark.parametrize(
    "wrong",
    [[], {"short": {"int8": True, "reason": ""}}, {"0" * 64: {"int8": 1, "reason": ""}}, {"0" * 64: {"int8": True}}],
    ids=str,
)
def test_a_decision_of_another_form_is_refused_and_measured_anew(wrong: Any, tmp_path: Path) -> None:
    path = lq_plugin.export(candidate(Scheme("dynamic")), tmp_path, ["torch"])["torch"].path
    rewrite(path, lambda content: content.update(measured=wrong))
    with pytest.raises(lq_plugin.errors.ArtifactError, match="measured must hold"):
        read(path)
    lq_plugin.export(candidate(Scheme("dynamic")), tmp_path, ["torch"])
    assert read(path).measured == {}
