"""The lanes of ``accuracy.py``: how each tool makes its INT8 model of a trained one, and how close that comes to FP32.

A worker, started by ``accuracy.py`` in a process of its own for every cell::

    python -m benchmarks.accuracy_lanes nncf mobile_cnn FOLDER --data FASHION --threads 1

It answers with a line of JSON. Seconds are CPU seconds of all threads, from the FP32 model (ours: in torch; theirs: as
ONNX or OpenVINO file) to files on disk; the import of the tool does not count. Peak memory is that of the process when
the files are written, with everything that it has imported.
"""

import argparse
import importlib
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import torchao_x86
from benchmarks.accuracy_models import BATCH_SIZE, TRAINED, Inputs, Subject
from benchmarks.lanes import Forward, onnxruntime_lane, openvino_lane, sqnr_db
from benchmarks.preparations import onnx_input_name, own_dynamic_tool
from benchmarks.pretrained_models import PRETRAINED
from benchmarks.workers import answers
from lq_plugin import cpu

Paths = Mapping[str, Path]  # what was built, by runtime
FLOAT = "fp32"
SUBJECTS = TRAINED | PRETRAINED


@dataclass(frozen=True)
class Job:
    """One cell: a lane of one model.

    Args:
        subject: the model.
        root: the model's folder, with what the FP32 lane has written.
        folder: the lane's own.
        data: the folder of Fashion-MNIST.
        threads: of the runtimes.
    """

    subject: Subject
    root: Path
    folder: Path
    data: Path
    threads: int

    def model(self) -> nn.Module:
        """The FP32 module."""
        return self.subject.loaded(self.root / FLOAT / "weights.pt")

    def inputs(self) -> Inputs:
        return Inputs(**torch.load(self.root / FLOAT / "inputs.pt"))

    def calibration(self, batch_size: int = BATCH_SIZE) -> list[Tensor]:
        """The calibration samples, the same for every tool."""
        return list(self.inputs().calibration.split(batch_size))

    @property
    def onnx(self) -> Path:
        return self.root / FLOAT / "model.onnx"

    @property
    def openvino(self) -> Path:
        return self.root / FLOAT / "model.xml"


# Builds: each writes below its job's folder, and returns what it wrote and facts worth recording.
Built = tuple[Paths, dict[str, Any]]


def build_fp32(job: Job) -> Built:
    """Train the model; write its weights, inputs and outputs, and the graphs that other tools start from."""
    import openvino as ov

    model, inputs, facts = job.subject.prepared(job.data)
    torch.save(model.state_dict(), job.folder / "weights.pt")
    torch.save(asdict(inputs), job.folder / "inputs.pt")
    batches = inputs.held_out.split(BATCH_SIZE)
    with torch.inference_mode():
        torch.save([model(x) for x in batches], job.folder / "expected.pt")
    if job.subject.recurrent:  # TorchScript's exporter keeps LSTM and GRU whole, which onnxruntime's tool needs
        axes = {"x": {0: "batch"}}
        options: dict[str, Any] = {"dynamo": False, "input_names": ["x"], "dynamic_axes": axes, "opset_version": 17}
    else:
        options = {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False}
    torch.onnx.export(model, (batches[0],), job.onnx, verbose=False, **options)
    ov.save_model(ov.convert_model(job.onnx), job.openvino, compress_to_fp16=False)
    samples = {"calibration_samples": len(inputs.calibration), "held_out_samples": len(inputs.held_out)}
    return {"onnxruntime": job.onnx, "openvino": job.openvino}, samples | facts


def ours(method: str, algorithms: tuple[str, ...] | None = None) -> Callable[[Job], Built]:
    """Our scheme of this method, for the runtimes that it is best on; with all its algorithms by default."""
    runtimes = {"onnx": "onnxruntime", "openvino": "openvino"} if method == "static" else {"onnx": "onnxruntime"}

    def build(job: Job) -> Built:
        import lq_plugin

        scheme = lq_plugin.Scheme(method, algorithms=algorithms, algorithm_time_limit=None)
        candidate = lq_plugin.quantize(job.model(), job.calibration(), scheme)
        artifacts = lq_plugin.export(candidate, job.folder, formats=list(runtimes))
        learning = getattr(candidate, "learning", None)
        steps = [] if learning is None else [asdict(step) for step in learning.steps]
        return {runtime: artifacts[name].path for name, runtime in runtimes.items()}, {"steps": steps}

    return build


def nncf_lane(**options: Any) -> Callable[[Job], Built]:
    """NNCF's post-training quantization; it gets single samples, as its documentation recommends."""

    def build(job: Job) -> Built:
        import nncf
        import openvino as ov

        given = dict(options)
        if given.pop("transformer", False):
            given["model_type"] = nncf.ModelType.TRANSFORMER
        if given.pop("mixed", False):
            given["preset"] = nncf.QuantizationPreset.MIXED
        if given.pop("tuned", False):  # by default it takes the mean of the samples' extremes, and so clips
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet

            given["advanced_parameters"] = nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX, disable_channel_alignment=False
            )
        samples = nncf.Dataset([x.numpy() for x in job.calibration(1)])
        model = nncf.quantize(ov.Core().read_model(job.openvino), samples, **given)
        ov.save_model(model, job.folder / "model.xml")
        return {"openvino": job.folder / "model.xml"}, {}

    return build


def ort_lane(method: str = "MinMax", **options: Any) -> Callable[[Job], Built]:
    """onnxruntime's static tool."""

    def build(job: Job) -> Built:
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self, name: str) -> None:
                self.feeds: Iterator[dict[str, np.ndarray]] = ({name: x.numpy()} for x in job.calibration())

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.feeds, None)

        prepared = job.folder / "prepared.onnx"
        quant_pre_process(job.onnx, prepared, skip_symbolic_shape=True)
        chosen = {"calibrate_method": CalibrationMethod[method], "reduce_range": cpu.saturates(), **options}
        reader = Reader(onnx_input_name(prepared))
        quantize_static(prepared, job.folder / "model.onnx", reader, **chosen)
        return {"onnxruntime": job.folder / "model.onnx"}, {}

    return build


def tuned() -> dict[str, Any]:
    """What onnxruntime's documentation recommends for x86: a scale for each channel, unsigned activations."""
    from onnxruntime.quantization import QuantType

    return {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}


def build_ort_tuned(job: Job) -> Built:
    """onnxruntime's static tool with the recommended types."""
    return ort_lane(**tuned())(job)


def build_ort_entropy(job: Job) -> Built:
    """The same with ranges of least relative entropy."""
    return ort_lane("Entropy", **tuned())(job)


def build_ort_dynamic(job: Job) -> Built:
    """onnxruntime's dynamic tool."""
    own_dynamic_tool(job.model(), job.calibration()[0], job.folder)
    return {"onnxruntime": job.folder / "model.onnx"}, {}


def build_torchao(job: Job) -> Built:
    """Its graph of Q/DQ pairs, which runs without torch.compile."""
    torchao_x86.quantize(job.model(), job.calibration(), job.folder / "model.pt2")
    return {"torch": job.folder / "model.pt2"}, {}


@dataclass(frozen=True)
class Lane:
    """A column of the comparison.

    Args:
        label: as tables name it.
        build: makes it.
        tool: what is imported before the time is taken.
        schemes: a lane runs for the models that compare one of these.
        ours: whether it is ours.
    """

    label: str
    build: Callable[[Job], Built]
    tool: str
    schemes: tuple[str, ...] = ("static",)
    ours: bool = False


ORT_TOOL, OUR_TOOL = "onnxruntime.quantization", "lq_plugin.functional"
LANES: dict[str, Lane] = {
    FLOAT: Lane("FP32", build_fp32, "torch.onnx", ("static", "dynamic")),
    "ours_plain": Lane("ours, plain", ours("static", ()), OUR_TOOL, ours=True),
    "ours_equalization": Lane("ours, equalization", ours("static", ("equalization",)), OUR_TOOL, ours=True),
    "ours_smoothing": Lane("ours, smoothing", ours("static", ("smoothing",)), OUR_TOOL, ours=True),
    "ours_sequential": Lane("ours, sequential", ours("static", ("sequential",)), OUR_TOOL, ours=True),
    "ours_auto": Lane("ours, auto", ours("static"), OUR_TOOL, ours=True),
    "nncf": Lane("NNCF (fast bias correction)", nncf_lane(), "nncf"),
    "nncf_smoothquant": Lane("NNCF, transformer (SmoothQuant)", nncf_lane(transformer=True), "nncf"),
    "nncf_full": Lane(
        "NNCF, mixed preset, full bias correction", nncf_lane(mixed=True, fast_bias_correction=False), "nncf"
    ),
    "nncf_tuned": Lane(
        "NNCF, mixed preset, full bias correction, min-max ranges, channel alignment",
        nncf_lane(mixed=True, fast_bias_correction=False, tuned=True),
        "nncf",
    ),
    "ort": Lane("onnxruntime quantize_static", ort_lane(), ORT_TOOL),
    "ort_tuned": Lane("onnxruntime, per channel, u8s8", build_ort_tuned, ORT_TOOL),
    "ort_entropy": Lane("onnxruntime, per channel, u8s8, entropy", build_ort_entropy, ORT_TOOL),
    "torchao": Lane("torchao, X86InductorQuantizer", build_torchao, "torchao.quantization.pt2e.quantize_pt2e"),
    "ours_dynamic_plain": Lane("ours, dynamic, plain", ours("dynamic", ()), OUR_TOOL, ("dynamic",), ours=True),
    "ours_dynamic": Lane("ours, dynamic", ours("dynamic"), OUR_TOOL, ("dynamic",), ours=True),
    "ort_dynamic": Lane("onnxruntime quantize_dynamic", build_ort_dynamic, ORT_TOOL, ("dynamic",)),
}


def torch_lane(path: Path) -> Forward:
    """torchao's graph, not compiled."""
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  (defines the operators of the file)

    return torch.export.load(path).module()


def opened(lane: Lane, runtime: str, path: Path, threads: int) -> Forward:
    """What was built, reloaded from disk: ours by the public API."""
    if lane.ours:
        import lq_plugin

        return lq_plugin.load(path, threads=threads)
    if runtime == "torch":
        return torch_lane(path)
    return onnxruntime_lane(path, threads) if runtime == "onnxruntime" else openvino_lane(path, threads)


def kernels(runtime: str, path: Path, is_ours: bool) -> dict[str, int] | None:
    """How many INT8 and float kernels compute convolutions and products; ``None`` where that is not known."""
    from lq_plugin.artifacts.base import FORMATS

    listed = FORMATS["onnx" if runtime == "onnxruntime" else "openvino"].kernels
    if listed is None or runtime == "torch" or (runtime == "openvino" and not is_ours):
        return None
    found = [kernel.int8 for kernel in listed(path if path.is_dir() else path.parent)]
    return {"int8": found.count(True), "float": found.count(False)}


def figures(subject: Subject, expected: list[Tensor], got: list[Tensor]) -> dict[str, float | None]:
    """SQNR in dB, and the model's metric; see ``Subject``."""
    wanted, given = torch.cat(expected), torch.cat(got)
    if subject.metric == "cosine":
        metric = F.cosine_similarity(given.flatten(1), wanted.flatten(1)).mean()
    else:
        metric = (given.argmax(1) == wanted.argmax(1)).float().mean()
    return {"sqnr_db": sqnr_db(wanted, given), subject.metric: float(metric)}


def peak_memory() -> int:
    """Peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run(lane: Lane, job: Job) -> dict[str, Any]:
    """Build a cell, reload it from disk, and compare its outputs with those of FP32."""
    importlib.import_module(lane.tool)
    began = time.process_time()
    paths, facts = lane.build(job)
    cell = {"seconds": time.process_time() - began, "peak_memory_bytes": peak_memory(), **facts, "runtimes": {}}
    expected, held_out = torch.load(job.root / FLOAT / "expected.pt"), job.inputs().held_out.split(BATCH_SIZE)
    for runtime, path in paths.items():
        with torch.inference_mode():
            forward = opened(lane, runtime, path, job.threads)
            got = [forward(x).clone() for x in held_out]
        cell["runtimes"][runtime] = {
            **figures(job.subject, expected, got),
            "kernels": kernels(runtime, path, lane.ours),
        }
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lane", choices=list(LANES))
    parser.add_argument("model", choices=list(SUBJECTS))
    parser.add_argument("folder", type=Path, help="where the model's files live")
    parser.add_argument("--data", type=Path, required=True, help="the folder of Fashion-MNIST")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    answer = answers()
    torch.set_num_threads(args.threads)
    torch.backends.mha.set_fastpath_enabled(False)  # of torch's attention, so that all lanes run the same operators
    folder = args.folder / args.lane
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    answer(run(LANES[args.lane], Job(SUBJECTS[args.model], args.folder, folder, args.data, args.threads)))


if __name__ == "__main__":
    main()
