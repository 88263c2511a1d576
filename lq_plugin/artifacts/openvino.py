"""OpenVINO's intermediate representation, read from the quantized graph's ONNX form."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lq_plugin.artifacts import onnx
from lq_plugin.errors import require
from lq_plugin.graph.graph import Graph

FILE = "model.xml"
FILES = (FILE, "model.bin")


def export(graph: Graph, folder: Path) -> None:
    """Write ``model.xml`` and ``model.bin``."""
    ov = require("openvino", "openvino", "formats: 'openvino'")
    with tempfile.TemporaryDirectory() as scratch:
        onnx.export(graph, Path(scratch), "openvino")
        model = ov.convert_model(str(Path(scratch) / onnx.FILE))
        ov.save_model(model, str(folder / FILE), compress_to_fp16=False)


def load(folder: Path, threads: int | None) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Compile the model for the CPU; what is not INT8 is computed in float32 on every CPU.

    The frontend is named, because OpenVINO would otherwise try every format that it knows on a foreign file.
    """
    ov = require("openvino", "openvino", "load: an OpenVINO artifact")
    reader = ov.frontend.FrontEndManager().load_by_framework("ir")
    model = reader.convert(reader.load(str(folder / FILE)))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = ov.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        results = request.infer([tensor.numpy() for tensor in tensors], share_inputs=True)
        return [torch.from_numpy(results[output].copy()) for output in compiled.outputs]

    return run
