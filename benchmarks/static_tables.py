"""The report of ``static_latency.py`` as tables, for the terminal and in Markdown."""

from typing import Any

from rich.console import Console
from rich.table import Table
from static_lanes import LANES

BOUND = 1.05  # of the time that the runtime's own tool needs
HEADERS = ("lane", "median ms", "p90 ms", "quietest ms", "SQNR dB", "MB", "kernels INT8 + float")
RATIO_HEADERS = ("ratio of times", "lanes", "within rounds", "quietest")
WITHOUT_VNNI = (
    f"**This CPU has no VNNI**: INT8 products are at most about twice as fast as FP32, and the bound of {BOUND} does "
    "not apply."
)

Result = dict[str, Any]
Rows = list[tuple[str, ...]]


def rows(lanes: Result) -> Rows:
    """The lanes of one model."""
    lines = []
    for name, lane in lanes.items():
        label = LANES[name].label
        if "error" in lane:
            lines.append((label, "failed", *[""] * (len(HEADERS) - 2)))
            continue
        times = (f"{lane[key]:.2f}" if key in lane else "" for key in ("median_ms", "p90_ms", "quietest_ms"))
        sqnr = f"{lane['sqnr_db']:.1f}" if LANES[name].int8 and lane["sqnr_db"] is not None else ""
        kernels = "{int8} + {float}".format(**lane["kernels"]) if lane["kernels"] else ""
        lines.append((label, *times, sqnr, f"{lane['size_bytes'] / 1e6:.1f}", kernels))
    return lines


def ratio_rows(result: Result) -> Rows:
    """The ratios of one model."""
    return [
        (title, " / ".join(figure["lanes"]), f"{figure['ratio']:.2f}", f"{figure['quietest']:.2f}")
        for title, figure in result["ratios"].items()
    ]


def own_tool_table(models: Result) -> tuple[tuple[str, ...], Rows]:
    """Headers and rows with the ratios of our times to those of each runtime's own tool."""
    titles = list(dict.fromkeys(title for result in models.values() for title in result["ratios"]))
    titles = [title for title in titles if title.startswith(("ours", "best ours"))]
    lines = []
    for model, result in models.items():
        figures = [result["ratios"].get(title) for title in titles]
        lines.append((model, *("" if figure is None else marked(figure) for figure in figures)))
    return ("model", *titles), lines


def marked(figure: Result) -> str:
    """Both ratios, in bold if both are above the bound: noise seldom slows a lane in all rounds."""
    text = f"{figure['ratio']:.2f} ({figure['quietest']:.2f})"
    return f"**{text}**" if min(figure["ratio"], figure["quietest"]) > BOUND else text


def failures(lanes: Result) -> list[str]:
    """One line for each lane that failed."""
    return [f"{LANES[name].label} failed: {lane['error']}" for name, lane in lanes.items() if "error" in lane]


def rich_table(title: str, headers: tuple[str, ...], body: Rows) -> Table:
    """A table for the terminal: first column left-aligned, the others right-aligned."""
    table = Table(title=title)
    for header in headers:
        table.add_column(header, justify="left" if header == headers[0] else "right")
    for row in body:
        table.add_row(*row)
    return table


def print_model(console: Console, model: str, result: Result) -> None:
    """Print the tables of one model, and the errors of lanes that failed."""
    console.print(rich_table(f"{model}, batch {result['batch_size']}", HEADERS, rows(result["lanes"])))
    for line in failures(result["lanes"]):
        console.print(line, style="red", markup=False)
    if result["ratios"]:
        console.print(rich_table("", RATIO_HEADERS, ratio_rows(result)))


def markdown(report: Result) -> str:
    """The report as Markdown tables."""
    facts = report["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    lines = [
        "# Static INT8, side by side",
        "",
        f"{facts['machine']} with {', '.join(facts['isa'])}; {facts['threads']} threads on {facts['cores']} cores; "
        f"{facts['rounds']} rounds of {facts['seconds_per_turn']:g} s ({facts['fp32_rounds']} of FP32); {versions}.",
        *([] if facts["wide_accumulation"] else ["", WITHOUT_VNNI]),
        "",
        "Ours / the runtime's own tool, ratio of times within rounds (and of the quietest rounds); in bold if both "
        f"are above {BOUND}:",
        "",
        *markdown_table(*own_tool_table(report["models"])),
    ]
    for model, result in report["models"].items():
        lines += ["", f"## {model}, batch {result['batch_size']}", ""]
        lines += markdown_table(HEADERS, rows(result["lanes"]))
        lines += ["", *(f"{line}  " for line in failures(result["lanes"])), ""]
        lines += markdown_table(RATIO_HEADERS, ratio_rows(result))
    return "\n".join(lines) + "\n"


def markdown_table(headers: tuple[str, ...], body: Rows) -> list[str]:
    """The lines of a table: first column left-aligned, the others right-aligned."""
    ruler = ("---", *("---:" for _ in headers[1:]))
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (headers, ruler, *body)]
