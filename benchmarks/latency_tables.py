"""The report of ``python -m benchmarks`` in Markdown: all CPUs side by side, then each one in detail."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.command_line import markdown_table
from benchmarks.comparing import BOUND, Comparison, compare, geometric_mean, settings, spread
from benchmarks.lanes import LANES
from benchmarks.preparations import THREADS
from benchmarks.reference_models import CALIBRATION_SAMPLES, HELD_OUT_SAMPLES, MODELS
from lq_plugin import cpu

Result = dict[str, Any]
Rows = list[tuple[str, ...]]
Setting = tuple[int, int]

INTRODUCTION = f"""\
# Speed, side by side

`python -m benchmarks` measures our artifacts, other tools' INT8 and FP32 on every runtime in one run: a process for
each lane, in turns, in another order in each round, with the same threads and the same {CALIBRATION_SAMPLES}
calibration samples. Ours has its defaults. Models have random weights and BatchNorm statistics of the data; every file
takes any batch size (torchao's are made for each). Whatever is not INT8 runs in FP32. SQNR is that of
{HELD_OUT_SAMPLES} samples that no calibrator has seen, the lowest of all settings.
[accuracy.md](../benchmarks/results/accuracy.md) compares trained models.

- **Ours / others:** the time of our fastest artifact over that of the fastest INT8 of all other tools (over the fastest
  FP32 where these have none): the median of the ratios within rounds, and in brackets that of the quietest rounds. Bold
  if both are above {BOUND}. Each of the twelve models weighs the same in the mean, whatever its number of lengths.
- **Selected / FP32:** our fastest artifact, chosen by half of the rounds, over the fastest FP32 runtime in the other
  half; “none” where FP32 was faster, so that no artifact is selected.
- Times in milliseconds: the median of the rounds' medians, and in brackets the quietest round's and the 90 % quantile.
- Kernels: convolutions, products and recurrent layers that the runtime computes on integers + in float, counted in its
  optimized graph. Build: CPU seconds from the FP32 model to the file, on one thread. Memory: the peak of the process
  that times, with torch imported in each, and that of the process that builds.
"""


def markdown(reports: Sequence[Result], plots: Sequence[str]) -> str:
    """The document.

    Args:
        reports: one for each CPU.
        plots: the file of each one's plot, relative to the document.
    """
    lines = [INTRODUCTION, *side_by_side(reports)]
    for report, plot in zip(reports, plots, strict=True):
        lines += [
            "",
            f"## {name(report)}",
            "",
            conditions(report) + absent(report),
            "",
            f"![times as shares of FP32 eager's]({plot})",
            "",
        ]
        lines += markdown_table(("model", "batch, threads", *BEST), best_rows(report))
        for model, cells in report["cells"].items():
            lines += ["", f"### {MODELS[model].label}, {name(report)}", "", *details(cells), "", *failures(cells)]
    return "\n".join(lines).rstrip() + "\n"


def has_vnni(report: Result) -> bool:
    return not cpu.saturates(report["environment"]["machine"], report["environment"]["isa"])


def name(report: Result) -> str:
    return f"{report['environment']['cpu']}, {'with' if has_vnni(report) else 'without'} VNNI"


def conditions(report: Result) -> str:
    """What the figures depend on."""
    facts = report["environment"]
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items() if number)
    return (
        f"{facts['cpu']} with {', '.join(facts['isa'])}; {facts['cores']} cores; {report['rounds']} rounds of "
        f"{report['seconds_per_turn']:g} s, fewer for lanes that are far behind; {versions}."
    )


def absent(report: Result) -> str:
    """The models, lanes and settings that this run left out, as a sentence; a table does not show what it lacks."""
    cells = report["cells"]
    timed = {lane for model in cells.values() for cell in model.values() for lane in cell["lanes"]}
    missing = [
        *(MODELS[model].label for model in MODELS if model not in cells),
        *(LANES[lane].label for lane in LANES if lane not in timed),
        *(f"{threads} threads" for threads in THREADS[1:] if threads not in {one[1] for one in settings(cells)}),
    ]
    return f" Not measured: {'; '.join(missing)}." if missing else ""


def side_by_side(reports: Sequence[Result]) -> list[str]:
    """Ours against the others on every CPU: the means, then each model."""
    columns = [(report, setting) for report in reports for setting in settings(report["cells"])]
    heads = [f"{told(setting)}, {'VNNI' if has_vnni(report) else 'no VNNI'}" for report, setting in columns]
    found = [compared(report, setting) for report, setting in columns]
    models = [model for model in MODELS if any(model in column for column in found)]
    rows = [(MODELS[model].label, *(ratio_of(column.get(model)) for column in found)) for model in models]
    return [
        *markdown_table(("", *heads), summary(found)),
        "",
        *markdown_table(("ours / others", *heads), rows),
        "",
        *markdown_table(
            ("selected / FP32", *heads),
            [(MODELS[model].label, *(selected_of(column.get(model)) for column in found)) for model in models],
        ),
    ]


def compared(report: Result, setting: Setting) -> dict[str, Comparison]:
    key = "{}/{}".format(*setting)
    return {model: compare(cells[key]["lanes"]) for model, cells in report["cells"].items() if key in cells}


def told(setting: Setting) -> str:
    batch, threads = setting
    return f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"


def summary(columns: Sequence[dict[str, Comparison]]) -> Rows:
    means = [
        geometric_mean((model, each.ratio.within) for model, each in column.items() if each.ratio) for column in columns
    ]
    above = [sum(each.ratio is not None and each.ratio.is_above for each in column.values()) for column in columns]
    slower = [
        sum(each.selected_ratio is not None and each.selected_ratio > 1 for each in column.values())
        for column in columns
    ]
    return [
        ("geometric mean of ours / others", *("" if mean is None else f"{mean:.2f}" for mean in means)),
        (f"rows above {BOUND}", *(f"{n} of {len(column)}" for n, column in zip(above, columns, strict=True))),
        (
            "selected, but slower than FP32",
            *(f"{n} of {len(column)}" for n, column in zip(slower, columns, strict=True)),
        ),
    ]


def ratio_of(found: Comparison | None) -> str:
    return "" if found is None or found.ratio is None else str(found.ratio)


def selected_of(found: Comparison | None) -> str:
    if found is None or found.selected is None:
        return "" if found is None else "none"
    return "" if found.selected_ratio is None else f"{found.selected_ratio:.2f}"


BEST = ("fastest FP32", "others' fastest INT8", "our fastest", "ours / others", "selected", "selected / FP32")


def best_rows(report: Result) -> Rows:
    """The fastest lanes of every cell."""
    rows = []
    for model, cells in report["cells"].items():
        for setting in settings({model: cells}):
            lanes = cells["{}/{}".format(*setting)]["lanes"]
            found = compare(lanes)
            best = (
                f"{timed(lanes, lane)} {LANES[lane].label}" if lane else ""
                for lane in (found.fp32, found.peer, found.ours)
            )
            chosen = LANES[found.selected].label if found.selected else "none"
            label = MODELS[model].label
            rows.append((label, told(setting), *best, ratio_of(found), chosen, selected_of(found)))
    return rows


def timed(lanes: Result, lane: str) -> str:
    return digits(spread(lanes[lane])[0])


def digits(value: float) -> str:
    """Three of them."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def details(cells: Result) -> list[str]:
    """Every lane of a model."""
    columns = settings({"": cells})
    heads = ("lane", *map(told, columns), "SQNR dB", "MB", "kernels", "build s", "MB to time", "MB to build")
    lanes = [lane for lane in LANES if any(lane in cell["lanes"] for cell in cells.values())]
    return markdown_table(heads, [lane_row(lane, cells, columns) for lane in lanes])


def lane_row(lane: str, cells: Result, columns: Sequence[Setting]) -> tuple[str, ...]:
    found = [cells["{}/{}".format(*setting)]["lanes"].get(lane, {}) for setting in columns]
    ran = [each for each in found if each.get("rounds")]
    times = [time_of(each) for each in found]
    return (LANES[lane].label, *times, *(figures(ran[-1], ran) if ran else [""] * 6))


def time_of(lane: Result) -> str:
    if not lane.get("rounds"):
        return "failed" if "error" in lane else ""
    median, quietest, p90 = map(digits, spread(lane))
    return f"{median} ({quietest}–{p90})"


def figures(last: Result, ran: Sequence[Result]) -> Iterator[str]:
    """What does not depend on the cell, or the worst of all cells."""
    noise = [each["sqnr_db"] for each in ran if each["sqnr_db"] is not None]
    yield f"{min(noise):.1f}" if noise else "∞"
    yield f"{last['size_bytes'] / 1e6:.1f}"
    yield "{int8} + {float}".format(**last["kernels"]) if last["kernels"] else ""
    yield f"{last['build_cpu_seconds']:.1f}"
    peak = max(turn["peak_memory_bytes"] for each in ran for turn in each["rounds"])
    yield f"{peak / 1e6:.0f}"
    yield f"{last['build_peak_memory_bytes'] / 1e6:.0f}"


def failures(cells: Result) -> list[str]:
    """One line for each lane that failed."""
    errors = {
        (lane, found["error"]) for cell in cells.values() for lane, found in cell["lanes"].items() if "error" in found
    }
    return [f"- {LANES[lane].label} failed: {' '.join(str(error).split())[:300]}" for lane, error in sorted(errors)]
