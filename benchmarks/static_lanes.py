"""The lanes of ``static_latency.py``: how each tool makes its model, and how each runtime runs it.

A worker, started by ``static_latency.py`` in a process of its own for every preparation and every turn::

    python benchmarks/static_lanes.py prepare ort_static resnet18 FOLDER --threads 2 --result result.json
    python benchmarks/static_lanes.py time ort_static resnet18 FOLDER --threads 2 --result result.json
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference_models import MODELS, ReferenceModel
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]

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
    model_type = nncf.ModelType.TRANSFORMER if reference is MODELS["transformer"] else None
    quantized = nncf.quantize(
        ov.Core().read_model(folder.parent / "fp32_openvino" / "model.xml"),
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=model_type,
    )
    ov.save_model(quantized, folder / "model.xml")
    return {"model_type": model_type.value if model_type else None}


def prepare_ours(reference: ReferenceModel, folder: Path) -> dict[str, Any]:
    """One calibration, three artifacts. Batches of at least 2, so that export leaves the batch size free."""
    import lq_plugin

    candidate = lq_plugin.quantize(reference.seeded(), reference.calibration(max(2, reference.batch_size)), "static")
    artifacts = lq_plugin.export(candidate, folder, formats=["onnx", "openvino", "pt2"])
    paths = {name: str(artifact.path) for name, artifact in artifacts.items()}
    (folder.parent / "ours.json").write_text(json.dumps(paths))
    return {"scheme": str(getattr(candidate, "scheme", "static"))}


PREPARATIONS: dict[str, Callable[[ReferenceModel, Path], dict[str, Any]]] = {
    "fp32": prepare_fp32,
    "fp32_openvino": prepare_fp32_openvino,
    "ort_static": prepare_ort_static,
    "nncf": prepare_nncf,
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

    return lq_plugin.load(json.loads((folder / "ours.json").read_text())[artifact_format], threads=threads)


@dataclass(frozen=True)
class Lane:
    """One row of the result: ``files`` is what ships, relative to the folder of the model."""

    label: str
    preparation: str
    files: str
    start: Callable[[ReferenceModel, Path, int], Forward]
    int8: bool = True


FP32_OPENVINO = {"INFERENCE_PRECISION_HINT": "f32"}  # or AMX machines would run it in bfloat16
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
        lambda _, folder, threads: openvino_lane(folder / "nncf" / "model.xml", threads, {}),
    ),
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


def size_bytes(lane: Lane, folder: Path) -> int:
    """Bytes of the files that ship."""
    ours = folder / "ours.json"
    path = Path(json.loads(ours.read_text())[lane.files]) if lane.preparation == "ours" else folder / lane.files
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def sqnr_db(expected: list[Tensor], got: list[Tensor]) -> float | None:
    """Signal-to-quantization-noise ratio, 10 log10(|x|^2 / |x - y|^2); None where the outputs are equal."""
    reference, output = torch.cat(expected).double(), torch.cat(got).double()
    noise = (reference - output).square().sum()
    return None if noise == 0 else 10 * math.log10(float(reference.square().sum() / noise))


def measure(forward: Forward, x: Tensor, seconds: float) -> list[float]:
    """Latencies in milliseconds: warm-up for ``seconds`` / 2, then calls for ``seconds``, at least 10."""
    warm = time.perf_counter() + seconds / 2
    while time.perf_counter() < warm:
        forward(x)
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 10 or time.perf_counter() < end:
        start = time.perf_counter_ns()
        forward(x)
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return samples


def take_turn(name: str, reference: ReferenceModel, folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """Open a lane, compare its outputs with FP32 eager, and time it."""
    lane = LANES[name]
    held_out = reference.held_out()
    with torch.inference_mode():
        forward = lane.start(reference, folder, threads)
        got = [forward(x).clone() for x in held_out]
        samples = measure(forward, held_out[0], seconds)
    return {
        "samples_ms": [round(sample, 4) for sample in samples],
        "sqnr_db": sqnr_db(torch.load(folder / "expected.pt"), got),
        "size_bytes": size_bytes(lane, folder),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["prepare", "time"])
    parser.add_argument("name", help="a preparation or a lane")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path, help="where the model's files live")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.action == "prepare":
        (args.folder / args.name).mkdir(parents=True, exist_ok=True)
        result = PREPARATIONS[args.name](MODELS[args.model], args.folder / args.name)
    else:
        result = take_turn(args.name, MODELS[args.model], args.folder, args.threads, args.seconds)
    args.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
