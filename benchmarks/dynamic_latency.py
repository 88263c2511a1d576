"""Dynamic INT8, side by side: our artifacts, onnxruntime's own tool, and FP32 on the same runtimes.

Run it from anywhere, in an environment with ``lq_plugin[onnx,openvino]``::

    python benchmarks/dynamic_latency.py
    python benchmarks/dynamic_latency.py --models lstm --rounds 9 --out dynamic.json

Every runtime has a process of its own, but for eager torch, which needs the model's code and runs in this one; they
take turns, with the same number of threads. Ratios are of medians. onnxruntime's own tool quantizes what torch's
TorchScript exporter writes, as its documentation shows. Writes OUT as JSON and as Markdown.
"""

import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import command_line
import torch
from rich.progress import track
from torch import Tensor, nn

import lq_plugin
from lq_plugin.artifacts import onnx, openvino
from lq_plugin.evaluation import latency
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.report.environment import environment


class Recurrent(nn.Module):
    """Two recurrent layers, and a linear one on the last step."""

    def __init__(self, layer: type[nn.RNNBase], inputs: int = 64, hidden: int = 512) -> None:
        super().__init__()
        self.layer, self.head = layer(inputs, hidden, 2, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Encoder(nn.Module):
    """Six transformer layers of width 384, each with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.TransformerEncoderLayer(384, 6, 1536, batch_first=True, dropout=0.0) for _ in range(6))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def mlp() -> nn.Module:
    return nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(1024, 1024), nn.ReLU())))


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "lstm": (lambda: Recurrent(nn.LSTM), (8, 64, 64)),
    "gru": (lambda: Recurrent(nn.GRU), (8, 64, 64)),
    "transformer": (Encoder, (8, 128, 384)),
    "mlp": (mlp, (32, 1024)),
}


def own_tool(model: nn.Module, x: Tensor, folder: Path) -> None:
    """onnxruntime's dynamic quantizer, with the settings of ours."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder.mkdir()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        exported, prepared = Path(scratch) / "model.onnx", Path(scratch) / "prepared.onnx"
        torch.onnx.export(model, (x,), str(exported), dynamo=False, input_names=["x"], opset_version=17)
        quant_pre_process(exported, prepared, skip_symbolic_shape=True)
        quantize_dynamic(
            prepared,
            folder / "model.onnx",
            op_types_to_quantize=["MatMul", "Gemm", "LSTM", "Attention"],
            per_channel=True,
            reduce_range=lq_plugin.Scheme("dynamic").reduce_range,
            weight_type=QuantType.QInt8,
        )


def measure(name: str, options: lq_plugin.Latency) -> dict[str, Any]:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)  # of torch's attention, so that all lanes run the same operators
    model, x = make().eval(), torch.randn(shape)
    candidate = lq_plugin.quantize(model, [x], "dynamic")
    notes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        artifacts = lq_plugin.export(candidate, root, ["onnx"], threads=options.threads)
        try:
            artifacts |= lq_plugin.export(candidate, root, ["openvino"])
        except lq_plugin.errors.UnsupportedError as error:
            notes["INT8 ours, openvino"] = str(error)
        lanes = {}
        for label, module in (("onnx", onnx), ("openvino", openvino)):
            if label in artifacts:
                (root / f"float_{label}").mkdir()
                module.export(candidate.graph, root / f"float_{label}")
                lanes[f"FP32 {label}"] = (label, root / f"float_{label}")
                lanes[f"INT8 ours, {label}"] = (label, artifacts[label].path)
        own_tool(model, x, root / "own")
        lanes["INT8 onnxruntime's own tool"] = ("onnx", root / "own")
        loaded = lq_plugin.load(artifacts["torch"].path, factory=make)
        with torch.no_grad():
            reference = model(x)
            here = {"FP32 torch": lambda: model(x), "INT8 ours, torch": lambda: loaded(x)}
            timings = latency.measure(here, lanes, [x], options)
            outputs = {lane: timing.outputs for lane, timing in timings.items()} | {"INT8 ours, torch": (loaded(x),)}
        sizes = {"FP32 torch": sum(tensor.nbytes for tensor in model.state_dict().values())}
        sizes |= {f"INT8 ours, {label}": artifact.size_bytes for label, artifact in artifacts.items()}
        notes |= {op["name"]: op["reason"] for op in artifacts["onnx"].float_ops if "measured" in op["reason"]}
    return {
        "shape": list(shape),
        "median_ms": {lane: timing.median for lane, timing in timings.items()},
        "errors": {lane: timing.error for lane, timing in timings.items() if timing.error},
        "sqnr_db": {lane: sqnr(given[0], reference) for lane, given in outputs.items() if given and "INT8" in lane},
        "size_bytes": sizes,
        "notes": notes,
    }


def sqnr(given: Tensor, wanted: Tensor) -> float:
    metric = SignalToQuantizationNoise()
    metric.update(given, wanted)
    return metric.compute().item()


def markdown(report: dict[str, Any]) -> str:
    facts = report["environment"]
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "onnxruntime", "openvino"))
    lines = [
        "# Dynamic INT8, side by side",
        "",
        f"{facts['cpu']} with {', '.join(facts['isa'])}; {report['threads']} threads on {facts['cores']} cores; "
        f"{report['rounds']} rounds of {report['seconds']:g} s; {versions}. Speed-up: over FP32 on the same runtime.",
    ]
    for name, result in report["models"].items():
        lines += ["", f"## {name}, {'×'.join(map(str, result['shape']))}", ""]
        lines += ["| lane | median ms | speed-up | SQNR dB | MB |", "| --- | ---: | ---: | ---: | ---: |"]
        for lane, median in result["median_ms"].items():
            base = result["median_ms"][base_of(lane)]
            cells = [lane, f"{median:.2f}", f"{base / median:.2f}" if lane.startswith("INT8") else ""]
            cells.append(f"{result['sqnr_db'][lane]:.1f}" if lane in result["sqnr_db"] else "")
            cells.append(f"{result['size_bytes'][lane] / 1e6:.2f}" if lane in result["size_bytes"] else "")
            lines.append(f"| {' | '.join(cells)} |")
        ours, own = (result["median_ms"][lane] for lane in ("INT8 ours, onnx", "INT8 onnxruntime's own tool"))
        lines += ["", f"Ours on onnxruntime / its own tool: {ours / own:.2f}  "]
        lines += [f"{subject}: {note}  " for subject, note in result["notes"].items()]
    return "\n".join(lines) + "\n"


def base_of(lane: str) -> str:
    return f"FP32 {lane.rpartition(', ')[2]}" if ", " in lane else "FP32 onnx"


def main() -> None:
    parser = command_line.parser(__doc__, MODELS, "dynamic_latency")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each lane (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="timed seconds a turn (default: %(default)s)")
    args = parser.parse_args()
    options = lq_plugin.Latency(threads=args.threads, rounds=args.rounds, seconds=args.seconds)
    settings = {"threads": args.threads, "rounds": args.rounds, "seconds": args.seconds}
    report: dict[str, Any] = {"environment": asdict(environment()), **settings, "models": {}}
    for name in track(args.models, "models", transient=True):
        report["models"][name] = measure(name, options)
    command_line.write(report, markdown(report), args.out)
    command_line.show(markdown(report))


if __name__ == "__main__":
    main()
