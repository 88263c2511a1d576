"""The report of ``accuracy.py`` in Markdown."""

from collections.abc import Iterator
from typing import Any

from benchmarks.accuracy_lanes import FLOAT, LANES
from benchmarks.command_line import markdown_table

OURS = {"static": ("ours_auto", "ours_plain"), "dynamic": ("ours_dynamic", "ours_dynamic_plain")}  # default, and plain
RUNTIMES = ("onnxruntime", "openvino", "torch")
SAME_DB = 0.05  # differences that the tables' rounding hides
WORSE_DB = 0.1  # by more, algorithms must not be behind plain calibration
HEADERS = ("lane", "on", "SQNR dB", "metric", "kernels INT8 + float", "CPU s", "peak MB")
SUMMARY = ("model", "scheme", "on", "ours, plain", "ours", "best of the others", "ahead by dB")

Result = dict[str, Any]
Rows = list[tuple[str, ...]]


def measured(cells: Result, scheme: str, runtime: str, ours: bool) -> Iterator[tuple[float, str]]:
    """SQNR and lane of what ran of a scheme on a runtime."""
    for name, cell in cells.items():
        lane = LANES[name]
        if name != FLOAT and lane.ours is ours and scheme in lane.schemes and runtime in cell.get("runtimes", {}):
            yield decibels(cell["runtimes"][runtime]), name


def decibels(figures: Result) -> float:
    """SQNR; infinite for equal outputs."""
    return float("inf") if figures["sqnr_db"] is None else figures["sqnr_db"]


def counted(cell: Result, runtime: str) -> str:
    """The share of kernels in INT8, where not all are: what stays float costs no accuracy, and gains no speed."""
    kernels = cell["runtimes"][runtime]["kernels"]
    if not kernels or not kernels["float"]:
        return ""
    return f" ({kernels['int8']} of {kernels['int8'] + kernels['float']} kernels INT8)"


def summary(models: Result) -> Rows:
    """A row for each model, scheme and runtime on which others ran too."""
    return [
        (model, scheme, runtime, *compared)
        for model, cells in models.items()
        for scheme in OURS
        for runtime in RUNTIMES
        if (compared := comparison(cells, scheme, runtime))
    ]


def comparison(cells: Result, scheme: str, runtime: str) -> tuple[str, ...] | None:
    """Ours as a user gets it against the best of the others on a runtime; ``None`` where one of them is missing."""
    default, plain = OURS[scheme]
    ours = {name: db for db, name in measured(cells, scheme, runtime, ours=True)}
    theirs, peer = max(measured(cells, scheme, runtime, ours=False), default=(0.0, ""))
    if default not in ours or not peer:
        return None
    ahead = ours[default] - theirs
    shown = (
        f"{ours[default]:.1f}"
        if ours[default] >= ours.get(plain, float("-inf")) - WORSE_DB
        else f"**{ours[default]:.1f}**"
    )
    return (
        f"{ours[plain]:.1f}" if plain in ours else "",
        f"{shown}{counted(cells[default], runtime)}",
        f"{theirs:.1f}{counted(cells[peer], runtime)}, {LANES[peer].label}",
        f"{ahead:+.1f}" if ahead >= -SAME_DB else f"**{ahead:+.1f}**",
    )


def rows(cells: Result) -> Rows:
    """The cells of one model, one row for each runtime."""
    lines = []
    for name, cell in cells.items():
        for runtime, figures in cell.get("runtimes", {}).items():
            if name != FLOAT:
                metric = next(value for key, value in figures.items() if key not in ("sqnr_db", "kernels"))
                kernels = "{int8} + {float}".format(**figures["kernels"]) if figures["kernels"] else ""
                made = (f"{cell['seconds']:.1f}", f"{cell['peak_memory_bytes'] / 1e6:.0f}")
                figure = (f"{decibels(figures):.1f}", f"{metric:.4f}", kernels)
                lines.append((LANES[name].label, runtime, *figure, *made))
    return lines


def steps(cells: Result) -> Rows:
    """What each algorithm that ours tries by default gave and cost."""
    lines = []
    tried = (step for lane in ("ours_auto", "ours_dynamic") for step in cells.get(lane, {}).get("steps", []))
    for step in tried:
        gains = (f"{runtime} {step['before'][runtime]:.1f} → {db:.1f}" for runtime, db in step["after"].items())
        outcome = step["outcome"].replace("_", " ") + (f": {step['reason']}" if step["reason"] else "")
        lines.append((step["algorithm"], outcome, ", ".join(gains), f"{step['seconds']:.1f}"))
    return lines


def failures(cells: Result) -> list[str]:
    """One line for each cell that failed."""
    return [f"{LANES[name].label} failed: {cell['error']}  " for name, cell in cells.items() if "error" in cell]


def heading(model: str, cells: Result) -> str:
    """The model, its samples, and how well it does its task in FP32."""
    facts = cells.get(FLOAT, {})
    if "error" in facts or not facts:
        return f"## {model}"
    told = f"## {model}: {facts['calibration_samples']} samples to calibrate, {facts['held_out_samples']} to compare"
    if "held_out_loss" not in facts:
        return told
    return f"{told}; trained for {facts['training_seconds']:.0f} s to a loss of {facts['held_out_loss']:.2f}"


def markdown(report: Result) -> str:
    """The report as Markdown tables."""
    facts = report["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    lines = [
        "# Accuracy of INT8, side by side",
        "",
        f"{facts['cpu']} with {', '.join(facts['isa'])}; {facts['threads']} threads; {versions}.",
        "All tools calibrate on the same samples; nobody has seen those on which outputs are compared. SQNR is of the "
        "outputs against FP32. The metric is agreement with FP32's decisions, or the mean cosine.",
        "",
        "Ours with its defaults against the best that any other tool reached on that runtime, chosen with hindsight; "
        "in bold where ours is behind, or where its algorithms lose more than .1 dB to plain calibration:",
        "",
        *markdown_table(SUMMARY, summary(report["models"])),
    ]
    for model, cells in report["models"].items():
        lines += ["", heading(model, cells), "", *markdown_table(HEADERS, rows(cells))]
        if tried := steps(cells):
            lines += ["", *markdown_table(("step of ours", "outcome", "dB on judged samples", "s"), tried)]
        lines += ["", *failures(cells)]
    if report["missing"]:
        lines += ["", "## Not measured yet", ""]
        lines += [f"{model}: {', '.join(lanes)}  " for model, lanes in report["missing"].items()]
    return "\n".join(lines).rstrip() + "\n"
