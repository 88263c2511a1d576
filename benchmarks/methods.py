"""Which method for which model: ``docs/methods.md``, from the latest results of the other benchmarks.

Nothing is measured here::

    python -m benchmarks.methods
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy_tables import OURS, counted, decibels
from benchmarks.command_line import RESULTS, markdown_table
from benchmarks.comparing import Comparison, compare, settings
from benchmarks.lanes import LANES
from benchmarks.latency_tables import conditions, has_vnni, name, told
from benchmarks.reference_models import MODELS
from benchmarks.reports import earlier
from benchmarks.workers import ROOT

DOCUMENT = ROOT / "docs" / "methods.md"
RUNTIMES = ("onnxruntime", "openvino")

Result = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """Models that are quantized alike.

    Args:
        method: what to begin with.
        why: in a sentence or two, true of any CPU.
        timed: models of the latency benchmark.
        trained: models of the accuracy benchmark.
    """

    method: str
    why: str
    timed: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()

    @property
    def scheme(self) -> str:
        """The method whose accuracy is quoted: ``"static"`` or ``"dynamic"``."""
        return "dynamic" if "dynamic" in self.method else "static"


KINDS: Mapping[str, Kind] = {
    "CNN": Kind(
        "static",
        "Convolutions have static INT8 kernels only.",
        ("resnet18", "unet", "tcn"),
        ("resnet18", "unet", "crepe", "pnet", "rnet", "onet"),
    ),
    "mobile CNN (depthwise convolutions)": Kind(
        "static",
        "Keep the algorithms: channels are uneven, and plain calibration may lose everything.",
        ("mobilenet_v2", "mobile_same", "mobilenet_v3"),
        ("mobile_cnn", "mobile_cnn_uneven", "efficientnet_lite2"),
    ),
    "vision transformer": Kind(
        "static",
        "Smoothing takes outliers out of activations; dynamic quantization has no remedy for them.",
        ("vit_tiny",),
        ("vit", "vit_outliers"),
    ),
    "text encoder": Kind(
        "static",
        "Dynamic needs no calibration and is more accurate; it was slower with VNNI.",
        ("bert_32", "bert_128", "bert_512"),
        ("encoder",),
    ),
    "Conformer": Kind("static", "It has convolutions, which dynamic leaves float.", ("conformer",)),
    "LSTM": Kind(
        "static on OpenVINO for speed, else dynamic",
        "Dynamic is more accurate. Both pay off from a few hundred hidden units.",
        ("lstm",),
        ("lstm",),
    ),
    "GRU": Kind(
        "dynamic",
        "There is no static form.",
        ("gru",),
        ("gru",),
    ),
    "MLP": Kind(
        "dynamic",
        "Weights are most of the work, and nothing has to be calibrated.",
        ("mlp",),
    ),
}


INTRODUCTION = """\
# Which method for which model

In doubt, give a run both `StaticQuantization()` and `DynamicQuantization()`: it measures your own model and selects
the fastest artifact within the budget.

What our artifacts gave with default options: the speed-up is that of the fastest artifact over the fastest FP32
runtime (“none” where FP32 was faster), and SQNR that of trained models against FP32 on samples that nobody has seen,
on the better runtime.

`python -m benchmarks.methods` makes this page from the results of the [speed](benchmarks.md) and the
[accuracy](../benchmarks/results/accuracy.md) benchmark.
"""
ACCURACY = ("model", "method", "runtime", "SQNR dB: plain calibration", "with algorithms", "agreement or cosine")


def markdown(reports: Sequence[Result], accuracy: Result) -> str:
    """The document.

    Args:
        reports: of latency, one for each CPU, in the order of the columns.
        accuracy: the report of ``benchmarks.accuracy``.
    """
    models = accuracy["models"]
    ups = (f"speed-up {'with' if has_vnni(report) else 'without'} VNNI" for report in reports)
    columns = ("model", "method", *ups, "SQNR dB", "why")
    lines = [INTRODUCTION, *markdown_table(columns, summary(reports, models), texts=len(columns))]
    for report in reports:
        heads = (f"speed-up, {told(setting)}" for setting in settings(report["cells"]))
        lines += ["", f"## Speed: {name(report)}", "", conditions(report), "", "Models have random weights.", ""]
        lines += markdown_table(("model", "fastest artifact", *heads, "size of FP32's", "SQNR dB"), speeds(report), 2)
    lines += ["", "## Accuracy of trained models", "", *markdown_table(ACCURACY, accuracies(models), texts=3)]
    return "\n".join(lines) + "\n"


def summary(reports: Sequence[Result], trained: Result) -> Iterator[tuple[str, ...]]:
    """A row for each kind of model."""
    for kind, each in KINDS.items():
        default, _ = OURS[each.scheme]
        runs = [trained[model][default]["runtimes"].values() for model in each.trained if model in trained]
        best = [max(map(decibels, figures)) for figures in runs]
        yield (kind, each.method, *(gained(report, each.timed) for report in reports), _range(best), each.why)


def gained(report: Result, models: Iterable[str]) -> str:
    """The speed-ups of several models on a CPU, and by which artifacts."""
    found = [one for model in models for one in compared(report, model) if one is not None]
    ups = _range([1 / one.selected_ratio for one in found if one.selected_ratio is not None], "×")
    if any(one.selected is None for one in found):
        ups = f"none to {ups}" if ups else "none"
    return f"{ups}: {artifacts(found)}" if any(one.selected for one in found) else ups


def compared(report: Result, model: str) -> list[Comparison | None]:
    """What each setting of the report says of a model."""
    cells = report["cells"].get(model, {})
    keys = ("{}/{}".format(*setting) for setting in settings(report["cells"]))
    return [compare(cells[key]["lanes"]) if key in cells else None for key in keys]


def artifacts(found: Iterable[Comparison | None]) -> str:
    """The artifacts that are selected, the most frequent first."""
    chosen = Counter(LANES[each.selected].label.removeprefix("ours, ") for each in found if each and each.selected)
    return ", ".join(label for label, _ in chosen.most_common()) or "none"


def _range(values: Sequence[float], unit: str = "") -> str:
    low, high = (f"{value:.1f}" for value in (min(values, default=0), max(values, default=0)))
    return "" if not values else f"{low}{unit}" if low == high else f"{low}–{high}{unit}"


def speeds(report: Result) -> Iterator[tuple[str, ...]]:
    """A row for each model that was timed."""
    for model in (model for kind in KINDS.values() for model in kind.timed if model in report["cells"]):
        found = compared(report, model)
        chosen = next((each.selected for each in found if each and each.selected), None)
        lanes = next(iter(report["cells"][model].values()))["lanes"]
        ours = lanes[chosen] if chosen else None
        share = f"{ours['size_bytes'] / lanes['fp32_eager']['size_bytes']:.0%}" if ours else ""
        noise = f"{ours['sqnr_db']:.1f}" if ours else ""
        yield (MODELS[model].label, artifacts(found), *map(_speed_up, found), share, noise)


def _speed_up(found: Comparison | None) -> str:
    if found is None or found.selected_ratio is None:
        return "" if found is None or found.selected else "none"
    return f"{1 / found.selected_ratio:.1f}×"


def accuracies(models: Result) -> Iterator[tuple[str, ...]]:
    """A row for each trained model, method and runtime."""
    for model in (model for kind in KINDS.values() for model in kind.trained if model in models):
        for scheme, (default, plain) in OURS.items():
            for runtime in RUNTIMES:
                before, after = _figures(models[model], plain, runtime), _figures(models[model], default, runtime)
                if after is not None:
                    share = next(value for key, value in after.items() if key not in ("sqnr_db", "kernels"))
                    was = "" if before is None else f"{decibels(before):.1f}"
                    now = f"{decibels(after):.1f}{counted(models[model][default], runtime)}"
                    yield (model, scheme, runtime, was, now, f"{share:.3f}")


def _figures(cells: Result, lane: str, runtime: str) -> Result | None:
    found: Result | None = cells.get(lane, {}).get("runtimes", {}).get(runtime)
    return found


def page() -> str:
    """The document as the results in the repository give it."""
    return markdown(list(earlier().values()), json.loads((RESULTS / "accuracy.json").read_text()))


if __name__ == "__main__":
    DOCUMENT.write_text(page())
