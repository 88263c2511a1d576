"""The lanes of the benchmark: what each runtime opens, and how a call of it is timed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.preparations import dynamic_in_torch, eager_model
from benchmarks.reference_models import ReferenceModel

Forward = Callable[[Tensor], Tensor]
Files = dict[str, Path]  # what a preparation has made, by name
WARM_UP = 0.1  # seconds at the beginning of every turn: after a pause, threads and caches are cold
# What is not INT8 runs in FP32, as in our artifacts. On a CPU with bfloat16 instructions, OpenVINO would otherwise use
# these: the float parts of a transformer become faster, other networks slower.
FP32_OPENVINO = {"INFERENCE_PRECISION_HINT": "f32"}


@dataclass(frozen=True)
class Opening:
    """What a lane has to open.

    Args:
        reference: the model.
        root: its folder.
        files: what the lane's preparation has made.
        threads: of the runtime.
    """

    reference: ReferenceModel
    root: Path
    files: Files
    threads: int

    def eager(self) -> nn.Module:
        return eager_model(self.reference, self.root)


def compiled(module: nn.Module) -> Forward:
    """``torch.compile`` with freezing: constants folded and weights packed, which INT8 lowering needs."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return torch.compile(module, dynamic=False)


def compiled_torchao(opening: Opening) -> Forward:
    """torchao's graphs under ``torch.compile``, one for each batch size."""
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  (defines the operators of the file)

    forwards: dict[int, Forward] = {}

    def forward(x: Tensor) -> Tensor:
        size = len(x)
        if size not in forwards:
            forwards[size] = compiled(torch.export.load(opening.files[f"pt2_{size}"]).module())
        return forwards[size](x)

    return forward


def onnxruntime_lane(path: Path, threads: int) -> Forward:
    """An ONNX file on onnxruntime, one thread pool of ``threads``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino_lane(path: Path, threads: int) -> Forward:
    """An OpenVINO model, tuned for latency."""
    import openvino as ov

    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **FP32_OPENVINO}
    request = ov.compile_model(path, "CPU", config).create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True)[0])


def ours(opening: Opening, key: str) -> nn.Module:
    """Our artifact, reloaded from disk by the public API."""
    import lq_plugin

    factory = opening.eager if key.startswith("torch") else None
    return lq_plugin.load(opening.files[key], threads=opening.threads, factory=factory)


@dataclass(frozen=True)
class Lane:
    """One row of the result.

    Args:
        label: as tables name it.
        kind: ``fp32``, ``peer`` or ``ours``.
        preparation: what makes its files.
        file: name of what ships among these; ``{threads}`` and ``{batch}`` stand for those of the cell.
        start: opens it.
        only: for transformers (``attention``) or models that gain by dynamic INT8 (``dynamic``); all by default.
    """

    label: str
    kind: str
    preparation: str
    file: str
    start: Callable[[Opening], Forward]
    only: str | None = None

    def applies(self, reference: ReferenceModel) -> bool:
        return self.only is None or bool(getattr(reference, self.only))

    @property
    def compiles(self) -> bool:
        return "torch.compile" in self.label

    def shipped(self, threads: int, batch: int) -> str:
        return self.file.format(threads=threads, batch=batch)


def _onnx(opening: Opening) -> Forward:
    return onnxruntime_lane(opening.files["onnx"] / "model.onnx", opening.threads)


def _openvino(opening: Opening) -> Forward:
    return openvino_lane(opening.files["openvino"] / "model.xml", opening.threads)


def _ours(name: str) -> Callable[[Opening], Forward]:
    return lambda opening: ours(opening, name.format(threads=opening.threads))


LANES: dict[str, Lane] = {
    "fp32_eager": Lane("FP32 torch eager", "fp32", "eager", "weights", Opening.eager),
    "fp32_compile": Lane("FP32 torch.compile", "fp32", "eager", "weights", lambda o: compiled(o.eager())),
    "fp32_ort": Lane("FP32 onnxruntime", "fp32", "onnx", "onnx", _onnx),
    "fp32_openvino": Lane("FP32 OpenVINO", "fp32", "openvino", "openvino", _openvino),
    "torch_dynamic": Lane(
        "torch quantize_dynamic",
        "peer",
        "torch_dynamic",
        "weights",
        lambda o: dynamic_in_torch(o.eager()),
        "dynamic",
    ),
    "torchao": Lane("torchao X86, torch.compile", "peer", "torchao", "pt2_{batch}", compiled_torchao),
    "ort_static": Lane("onnxruntime quantize_static", "peer", "ort_static", "onnx", _onnx),
    "ort_tuned": Lane("onnxruntime quantize_static, tuned", "peer", "ort_tuned", "onnx", _onnx, "attention"),
    "ort_dynamic": Lane("onnxruntime quantize_dynamic", "peer", "ort_dynamic", "onnx", _onnx, "dynamic"),
    "nncf": Lane("NNCF on OpenVINO", "peer", "nncf", "openvino", _openvino),
    "nncf_transformer": Lane(
        "NNCF, model type transformer", "peer", "nncf_transformer", "openvino", _openvino, "attention"
    ),
    "ours_onnx": Lane("ours, static on onnxruntime", "ours", "ours_static", "onnx", _ours("onnx")),
    "ours_openvino": Lane("ours, static on OpenVINO", "ours", "ours_static", "openvino", _ours("openvino")),
    "ours_pt2": Lane("ours, static, torch.compile", "ours", "ours_static", "pt2", lambda o: compiled(ours(o, "pt2"))),
    "ours_dynamic_onnx": Lane(
        "ours, dynamic on onnxruntime",
        "ours",
        "ours_dynamic",
        "onnx_{threads}",
        _ours("onnx_{threads}"),
        "dynamic",
    ),
    "ours_dynamic_openvino": Lane(
        "ours, dynamic on OpenVINO",
        "ours",
        "ours_dynamic",
        "openvino_{threads}",
        _ours("openvino_{threads}"),
        "dynamic",
    ),
    "ours_dynamic_torch": Lane(
        "ours, dynamic in torch",
        "ours",
        "ours_dynamic",
        "torch_{threads}",
        _ours("torch_{threads}"),
        "dynamic",
    ),
}


def sqnr_db(expected: Tensor, got: Tensor) -> float | None:
    """Signal-to-quantization-noise ratio, 10 log10(|x|^2 / |x - y|^2); None where the outputs are equal."""
    reference, output = expected.double(), got.double()
    noise = (reference - output).square().sum()
    return None if noise == 0 else 10 * math.log10(float(reference.square().sum() / noise))


def timed(forward: Forward, x: Tensor, seconds: float) -> list[float]:
    """Latencies in milliseconds, of at least 3 calls after the warm-up."""
    warm = time.perf_counter() + WARM_UP
    while time.perf_counter() < warm:
        forward(x)
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < end:
        start = time.perf_counter_ns()
        forward(x)
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return samples
