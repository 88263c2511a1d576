"""How each tool makes its files of a reference model; this needs no quiet machine.

Each preparation runs in a process of its own, see ``lane_worker.py``, on one thread. CPU seconds are counted from the
FP32 model (ours and torchao's: in torch; the others': as ONNX or OpenVINO file) to files on disk, without the import of
the tool. Every file takes any batch size, except for torchao's, of which there is one for each.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import torchao_x86
from benchmarks.reference_models import ReferenceModel
from lq_plugin import cpu
from lq_plugin.artifacts.description import Artifact
from lq_plugin.artifacts.writing import export_one
from lq_plugin.errors import LqError
from lq_plugin.noise import muted

BATCHES = (1, 8)
THREADS = (1, 2)


@dataclass
class Built:
    """What a preparation has made, by name.

    Args:
        files: what ships, relative to the model's folder.
        errors: why there is no such file.
        cpu_seconds: what a file took, where several are made of one calibration.
        settings: worth recording.
    """

    files: dict[str, Path]
    errors: dict[str, str] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One preparation of one model.

    Args:
        reference: the model.
        root: the model's folder.
        folder: the preparation's own in it.
    """

    reference: ReferenceModel
    root: Path
    folder: Path

    def model(self) -> nn.Module:
        """The FP32 module."""
        return eager_model(self.reference, self.root)

    @property
    def onnx(self) -> Path:
        return self.root / "onnx" / "model.onnx"

    @property
    def openvino(self) -> Path:
        return self.root / "openvino" / "model.xml"


def eager_model(reference: ReferenceModel, root: Path) -> nn.Module:
    """The FP32 module with the weights that the first preparation kept."""
    model = reference.build().eval()
    model.load_state_dict(torch.load(root / "eager" / "weights.pt"))
    return model


def build_eager(job: Job) -> Built:
    """Weights, and the outputs that every lane is compared with."""
    model = job.reference.seeded()
    with torch.inference_mode():
        torch.save(model(job.reference.held_out()), job.folder / "expected.pt")
    torch.save(model.state_dict(), job.folder / "weights.pt")
    return Built({"weights": job.folder / "weights.pt"})


def build_onnx(job: Job) -> Built:
    """The float graph that the runtimes and their tools start from."""
    x = job.reference.calibration()[0]
    if job.reference.recurrent:
        export_by_tracing(job.model(), x, job.onnx)
    else:
        axes = ({0: torch.export.Dim("batch")},)
        with muted():
            torch.onnx.export(
                job.model(), (x,), job.onnx, dynamo=True, dynamic_shapes=axes, external_data=False, verbose=False
            )
    return Built({"onnx": job.folder})


def export_by_tracing(model: nn.Module, x: Tensor, path: Path) -> None:
    """Export with torch's TorchScript exporter, for any batch size; it keeps LSTM and GRU whole."""
    torch.backends.mha.set_fastpath_enabled(False)  # of torch's attention, which has no form in ONNX
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "batch"}}
        torch.onnx.export(model, (x,), str(path), dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=17)


def build_openvino(job: Job) -> Built:
    """OpenVINO's own file format, weights kept in FP32."""
    import openvino as ov

    ov.save_model(ov.convert_model(job.onnx), job.openvino, compress_to_fp16=False)
    return Built({"openvino": job.folder})


def onnx_input_name(path: Path) -> str:
    """The name of the only input of an ONNX model."""
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def ort_static(tuned: bool) -> Callable[[Job], Built]:
    """onnxruntime's calibrator with the types that its documentation recommends for x86.

    Tuned for transformers, only products with weights are INT8, and their outputs float: quantized residual
    connections cost accuracy and gain nothing.
    """

    def build(job: Job) -> Built:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self, name: str) -> None:
                batches = job.reference.calibration()
                self.feeds: Iterator[dict[str, np.ndarray]] = ({name: x.numpy()} for x in batches)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.feeds, None)

        prepared = job.folder.parent / f"{job.folder.name}_preprocessed.onnx"
        quant_pre_process(job.onnx, prepared, skip_symbolic_shape=True)
        products = ["MatMul", "Gemm"]
        extra = {"OpTypesToExcludeOutputQuantization": products, "MatMulConstBOnly": True} if tuned else {}
        quantize_static(
            prepared,
            job.folder / "model.onnx",
            Reader(onnx_input_name(prepared)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=products if tuned else None,
            per_channel=True,
            reduce_range=cpu.saturates(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=extra,
        )
        prepared.unlink()
        return Built({"onnx": job.folder}, settings={"activations": "uint8", "weights": "int8 per channel"})

    return build


def build_ort_dynamic(job: Job) -> Built:
    """onnxruntime's dynamic tool."""
    own_dynamic_tool(job.model(), job.reference.calibration()[0], job.folder)
    return Built({"onnx": job.folder})


def own_dynamic_tool(model: nn.Module, x: Tensor, folder: Path) -> None:
    """Write ``model.onnx`` with onnxruntime's dynamic quantizer; not for convolutions, which become slower."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    exported, prepared = folder / "exported.onnx", folder / "prepared.onnx"
    export_by_tracing(model, x, exported)
    quant_pre_process(exported, prepared, skip_symbolic_shape=True)
    quantize_dynamic(
        prepared,
        folder / "model.onnx",
        op_types_to_quantize=["MatMul", "Gemm", "LSTM", "Attention"],
        per_channel=True,
        reduce_range=cpu.saturates(),
        weight_type=QuantType.QInt8,
    )
    exported.unlink()
    prepared.unlink()


def nncf(transformer: bool) -> Callable[[Job], Built]:
    """NNCF's post-training quantization of the OpenVINO model; single samples, as its documentation recommends."""

    def build(job: Job) -> Built:
        import nncf
        import openvino as ov

        samples = [x.numpy() for x in job.reference.calibration(1)]
        model_type = nncf.ModelType.TRANSFORMER if transformer else None
        quantized = nncf.quantize(
            ov.Core().read_model(job.openvino),
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=model_type,
        )
        ov.save_model(quantized, job.folder / "model.xml")
        return Built({"openvino": job.folder})

    return build


def build_torchao(job: Job) -> Built:
    files = {f"pt2_{size}": job.folder / f"batch_{size}.pt2" for size in BATCHES}
    for size, file in zip(BATCHES, files.values(), strict=True):
        torchao_x86.quantize(job.model(), job.reference.calibration(size), file)
    return Built(files)


def dynamic_in_torch(model: nn.Module) -> nn.Module:
    """``quantize_dynamic`` of what it can quantize."""
    from torch.ao.quantization import quantize_dynamic

    torch.backends.mha.set_fastpath_enabled(False)  # of torch's attention, which fails on quantized layers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_dynamic(model, {nn.Linear, nn.LSTM, nn.GRU}, dtype=torch.qint8)


def build_torch_dynamic(job: Job) -> Built:
    """Its INT8 weights, for their size: the lane quantizes again when it starts, as users do."""
    torch.save(dynamic_in_torch(job.model()).state_dict(), job.folder / "weights.pt")
    return Built({"weights": job.folder / "weights.pt"})


def ours_static(job: Job) -> Built:
    """Our defaults: one calibration and its algorithms, three artifacts, placed for one sample on one thread."""
    import lq_plugin

    began = time.process_time()
    candidate = lq_plugin.quantize(job.model(), job.reference.calibration(), "static")
    seconds = time.process_time() - began
    built = Built({}, settings={"scheme": str(candidate.scheme)})

    def placed(name: str) -> Artifact:
        return lq_plugin.export(candidate, job.folder, [name], threads=1, placement="auto")[name]

    for name in ("onnx", "openvino", "pt2"):
        _export(built, name, seconds, partial(placed, name))
    return built


def ours_dynamic(job: Job) -> Built:
    """Our defaults; for each number of threads, because whether a GRU is faster in INT8 is measured with it."""
    import lq_plugin

    began = time.process_time()
    candidate = lq_plugin.quantize(job.model(), job.reference.calibration(), "dynamic")
    seconds = time.process_time() - began
    built = Built({}, settings={"scheme": str(candidate.scheme)})
    for threads in THREADS:
        for name in ("onnx", "openvino", "torch"):
            path = job.folder / f"threads_{threads}" / name
            _export(built, f"{name}_{threads}", seconds, partial(export_one, candidate, path, name, threads))
    return built


def _export(built: Built, key: str, seconds: float, export: Callable[[], Artifact]) -> None:
    """Export one format; one that does not exist for a candidate leaves the others alone."""
    began = time.process_time()
    try:
        built.files[key] = export().path
    except LqError as error:
        built.errors[key] = str(error)
    else:
        built.cpu_seconds[key] = seconds + time.process_time() - began


@dataclass(frozen=True)
class Preparation:
    """A step before timing.

    Args:
        build: writes files below its job's folder.
        tool: what is imported before its time is taken.
        needs: preparations whose files it reads.
        ours: whether our code makes the files.
    """

    build: Callable[[Job], Built]
    tool: str = "torch"
    needs: tuple[str, ...] = ("eager",)
    ours: bool = False


_ORT, _OURS = "onnxruntime.quantization", "lq_plugin.functional"
PREPARATIONS: dict[str, Preparation] = {
    "eager": Preparation(build_eager, needs=()),
    "onnx": Preparation(build_onnx, "torch.onnx"),
    "openvino": Preparation(build_openvino, "openvino", ("eager", "onnx")),
    "ours_static": Preparation(ours_static, _OURS, ours=True),
    "ours_dynamic": Preparation(ours_dynamic, _OURS, ours=True),
    "torch_dynamic": Preparation(build_torch_dynamic, "torch.ao.quantization"),
    "torchao": Preparation(build_torchao, "torchao.quantization.pt2e.quantize_pt2e"),
    "ort_static": Preparation(ort_static(tuned=False), _ORT, ("eager", "onnx")),
    "ort_tuned": Preparation(ort_static(tuned=True), _ORT, ("eager", "onnx")),
    "ort_dynamic": Preparation(build_ort_dynamic, _ORT),
    "nncf": Preparation(nncf(transformer=False), "nncf", ("eager", "onnx", "openvino")),
    "nncf_transformer": Preparation(nncf(transformer=True), "nncf", ("eager", "onnx", "openvino")),
}
