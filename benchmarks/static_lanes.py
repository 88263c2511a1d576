"""The lanes of ``static_latency.py``: how each tool makes its model, and how each runtime runs it.

A worker, started by ``static_latency.py`` in a process of its own for every preparation and every lane::

    python benchmarks/static_lanes.py prepare ort_static resnet18 FOLDER --threads 2
    python benchmarks/static_lanes.py time ort_static resnet18 FOLDER --threads 2

It answers with a line of JSON when it is ready. For every line that it then reads, a lane takes a turn of that many
seconds, and answers with a line of milliseconds.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference_models import MODELS, ReferenceModel
from torch import Tensor, nn
from workers import answers

Forward = Callable[[Tensor], Tensor]
WARM_UP = 0.1  # seconds at the beginning of every turn: after a pause, threads and caches are cold

ISA_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm")


def cpu_isa() -> list[str]:
    """The instruction sets of this CPU that decide INT8 speed (Linux; elsewhere what torch says)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return [torch.backends.cpu.get_cpu_capability().lower()]
    words = set(cpuinfo.read_text().split())
    return [flag for flag in ISA_FLAGS if flag in words]


def has_wide_accumulation() -> bool:
    """Whether u8*s8 products are summed in 32 bits; plain AVX2 and AVX-512 sum pairs in 16 bits, and saturate."""
    return not {"avx2", "avx512f"} & set(cpu_isa()) or bool({"avx_vnni", "avx512_vnni"} & set(cpu_isa()))


# Preparations: each writes its files below FOLDER/<preparation> and returns settings worth recording.


def prepare_fp32(reference: ReferenceModel, folder: Path) -> dict[str, Any]:
    """Eager weights, the outputs every lane is compared with, and the float graph for the runtimes."""
    model = reference.seeded()
    held_out = reference.held_out()
    with torch.inference_mode():
        torch.save([model(x) for x in held_out], folder.parent / "expected.pt")
    torch.save(model.state_dict(), folder / "weights.pt")
    torch.onnx.export(model, (held_out[0],), folder / "model.onnx", dynamo=True, external_data=False, verbose=False)
    return {}


def prepare_fp32_openvino(_: ReferenceModel, folder: Path) -> dict[str, Any]:
    """OpenVINO's own file format, weights kept in FP32."""
    import openvino as ov

    ov.save_model(ov.convert_model(folder.parent / "fp32" / "model.onnx"), folder / "model.xml", compress_to_fp16=False)
    return {"compress_to_fp16": False}


def prepare_ort_static(reference: ReferenceModel, folder: Path) -> dict[str, Any]:
    """onnxruntime's calibrator with the settings its documentation recommends for this CPU."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.feeds: Iterator[dict[str, np.ndarray]] = (
                {name: x.numpy()} for x in reference.calibration(reference.batch_size)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    prepared = folder.parent / "ort_preprocessed.onnx"
    quant_pre_process(folder.parent / "fp32" / "model.onnx", prepared)
    reduce_range = not has_wide_accumulation()
    quantize_static(
        prepared,
        folder / "model.onnx",
        Reader(onnx_input_name(prepared)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return {"activations": "uint8", "weights": "int8 per channel", "reduce_range": reduce_range}


def prepare_nncf(reference: ReferenceModel, folder: Path) -> dict[str, Any]:
    """NNCF's post-training quantization of the OpenVINO model, defaults but for the model type."""
    import nncf
    import openvino as ov

    batches = [x.numpy() for x in reference.calibration(reference.batch_size)]
    model_type = nncf.ModelType.TRANSFORMER if reference.attention else None
    quantized = nncf.quantize(
        ov.Core().read_model(folder.parent / "fp32_openvino" / "model.xml"),
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=model_type,
    )
    ov.save_model(quantized, folder / "model.xml")
    return {"model_type": model_type.value if model_type else None}


def prepare_torchao(reference: ReferenceModel, folder: Path) -> dict[str, Any]:
    """torchao's quantizer for x86, as its tutorial shows it; the batch size is fixed."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    batches = reference.calibration(reference.batch_size)
    reduce_range = not has_wide_accumulation()
    config = x86.get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
    # Strict: without bytecode tracing, it refuses a ReLU module that is used twice.
    exported = torch.export.export(reference.seeded(), (batches[0],), strict=True)
    prepared = prepare_pt2e(exported.module(), x86.X86InductorQuantizer().set_global(config))
    with torch.no_grad():
        for x in batches:
            prepared(x)
        converted = convert_pt2e(prepared)
        torch.export.save(torch.export.export(converted, (batches[0],)), folder / "model.pt2")
    return {"reduce_range": reduce_range}


def prepare_ours(reference: ReferenceModel, folder: Path) -> dict[str, Any]:
    """One calibration, three artifacts. Batches of at least 2, so that export leaves the batch size free."""
    import lq_plugin

    candidate = lq_plugin.quantize(reference.seeded(), reference.calibration(max(2, reference.batch_size)), "static")
    artifacts = lq_plugin.export(candidate, folder, formats=["onnx", "openvino", "pt2"])
    paths = {name: str(artifact.path) for name, artifact in artifacts.items()}
    (folder.parent / "ours_paths.json").write_text(json.dumps(paths))
    return {"scheme": str(getattr(candidate, "scheme", "static"))}


PREPARATIONS: dict[str, Callable[[ReferenceModel, Path], dict[str, Any]]] = {
    "fp32": prepare_fp32,
    "fp32_openvino": prepare_fp32_openvino,
    "ort_static": prepare_ort_static,
    "nncf": prepare_nncf,
    "torchao": prepare_torchao,
    "ours": prepare_ours,
}


# Lanes: each opens what a preparation wrote and returns a function from tensor to tensor.


def onnx_input_name(path: Path) -> str:
    """The name of the only input of an ONNX model."""
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def eager(reference: ReferenceModel, folder: Path, _: int) -> nn.Module:
    """The FP32 model as the user has it."""
    model = reference.build().eval()
    model.load_state_dict(torch.load(folder / "fp32" / "weights.pt"))
    return model


def compiled(module: nn.Module) -> Forward:
    """``torch.compile`` with freezing: constants folded and weights packed, which INT8 lowering needs."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return torch.compile(module)


def compiled_fp32(reference: ReferenceModel, folder: Path, threads: int) -> Forward:
    """The FP32 model under ``torch.compile``."""
    return compiled(eager(reference, folder, threads))


def compiled_torchao(_: ReferenceModel, folder: Path, threads: int) -> Forward:
    """torchao's graph under ``torch.compile``."""
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  (defines the operators of the file)

    return compiled(torch.export.load(folder / "torchao" / "model.pt2").module())


def onnxruntime_lane(path: Path, threads: int) -> Forward:
    """An ONNX file on onnxruntime, one thread pool of ``threads``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino_lane(path: Path, threads: int, precision: dict[str, str]) -> Forward:
    """An OpenVINO model, tuned for latency."""
    import openvino as ov

    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **precision}
    request = ov.compile_model(path, "CPU", config).create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()])[0])


def ours_lane(folder: Path, artifact_format: str, threads: int) -> nn.Module:
    """Our artifact, reloaded from disk by the public API."""
    import lq_plugin

    return lq_plugin.load(json.loads((folder / "ours_paths.json").read_text())[artifact_format], threads=threads)


@dataclass(frozen=True)
class Lane:
    """One row of the result: ``files`` is what ships, relative to the folder of the model."""

    label: str
    preparation: str
    files: str
    start: Callable[[ReferenceModel, Path, int], Forward]
    int8: bool = True


# What is not INT8 runs in FP32, as in our artifacts. On a CPU with bfloat16 instructions, OpenVINO would otherwise use
# these: the float parts of a transformer become faster, other networks slower.
FP32_OPENVINO = {"INFERENCE_PRECISION_HINT": "f32"}
LANES: dict[str, Lane] = {
    "fp32_eager": Lane("FP32 torch eager", "fp32", "fp32/weights.pt", eager, int8=False),
    "fp32_compile": Lane("FP32 torch.compile", "fp32", "fp32/weights.pt", compiled_fp32, int8=False),
    "fp32_ort": Lane(
        "FP32 onnxruntime",
        "fp32",
        "fp32/model.onnx",
        lambda _, folder, threads: onnxruntime_lane(folder / "fp32" / "model.onnx", threads),
        int8=False,
    ),
    "fp32_openvino": Lane(
        "FP32 OpenVINO",
        "fp32_openvino",
        "fp32_openvino",
        lambda _, folder, threads: openvino_lane(folder / "fp32_openvino" / "model.xml", threads, FP32_OPENVINO),
        int8=False,
    ),
    "ort_static": Lane(
        "INT8 onnxruntime quantize_static",
        "ort_static",
        "ort_static",
        lambda _, folder, threads: onnxruntime_lane(folder / "ort_static" / "model.onnx", threads),
    ),
    "nncf": Lane(
        "INT8 NNCF on OpenVINO",
        "nncf",
        "nncf",
        lambda _, folder, threads: openvino_lane(folder / "nncf" / "model.xml", threads, FP32_OPENVINO),
    ),
    "nncf_default": Lane(
        "INT8 NNCF, OpenVINO's own choice of precision",
        "nncf",
        "nncf",
        lambda _, folder, threads: openvino_lane(folder / "nncf" / "model.xml", threads, {}),
    ),
    "torchao": Lane("INT8 torchao, torch.compile", "torchao", "torchao/model.pt2", compiled_torchao),
    "ours_onnx": Lane(
        "INT8 ours on onnxruntime", "ours", "onnx", lambda _, folder, threads: ours_lane(folder, "onnx", threads)
    ),
    "ours_openvino": Lane(
        "INT8 ours on OpenVINO", "ours", "openvino", lambda _, folder, threads: ours_lane(folder, "openvino", threads)
    ),
    "ours_pt2": Lane(
        "INT8 ours, torch.compile",
        "ours",
        "pt2",
        lambda _, folder, threads: compiled(ours_lane(folder, "pt2", threads)),
    ),
}


def shipped(lane: Lane, folder: Path) -> Path:
    """What ships: a file or a folder."""
    if lane.preparation != "ours":
        return folder / lane.files
    return Path(json.loads((folder / "ours_paths.json").read_text())[lane.files])


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def kernels(lane: Lane, path: Path) -> dict[str, int] | None:
    """How many INT8 and float kernels our artifact uses for convolutions and products."""
    from lq_plugin.artifacts.base import FORMATS

    listed = FORMATS[lane.files].kernels if lane.preparation == "ours" else None
    if listed is None:
        return None
    found = [kernel.int8 for kernel in listed(path)]
    return {"int8": found.count(True), "float": found.count(False)}


def sqnr_db(expected: list[Tensor], got: list[Tensor]) -> float | None:
    """Signal-to-quantization-noise ratio, 10 log10(|x|^2 / |x - y|^2); None where the outputs are equal."""
    reference, output = torch.cat(expected).double(), torch.cat(got).double()
    noise = (reference - output).square().sum()
    return None if noise == 0 else 10 * math.log10(float(reference.square().sum() / noise))


def measure(forward: Forward, x: Tensor, seconds: float) -> list[float]:
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


def take_turns(name: str, reference: ReferenceModel, folder: Path, threads: int, answer: Callable[[Any], None]) -> None:
    """Open a lane, compare its outputs with FP32 eager, and time it for every line of stdin."""
    lane = LANES[name]
    path = shipped(lane, folder)
    held_out = reference.held_out()
    with torch.inference_mode():
        forward = lane.start(reference, folder, threads)
        got = [forward(x).clone() for x in held_out]
        figures = {"sqnr_db": sqnr_db(torch.load(folder / "expected.pt"), got), "size_bytes": size_bytes(path)}
        answer(figures | {"kernels": kernels(lane, path)})
        for line in sys.stdin:
            answer([round(sample, 4) for sample in measure(forward, held_out[0], float(line))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["prepare", "time"])
    parser.add_argument("name", help="a preparation or a lane")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path, help="where the model's files live")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    answer = answers()
    torch.set_num_threads(args.threads)
    if args.action == "time":
        take_turns(args.name, MODELS[args.model], args.folder, args.threads, answer)
        return
    shutil.rmtree(args.folder / args.name, ignore_errors=True)
    (args.folder / args.name).mkdir(parents=True)
    answer(PREPARATIONS[args.name](MODELS[args.model], args.folder / args.name))


if __name__ == "__main__":
    main()
