"""The table at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from lq_plugin.artifacts.base import FORMATS
from lq_plugin.learning import Trial
from lq_plugin.printing import add_row, brief, counted, show_lines, terminal
from lq_plugin.report.manifest import EAGER, FILE, Entry, Fp32, Manifest, Speedup

_WORST = 3  # how many operators are named


def show(manifest: Manifest, folder: Path, console: Console | None = None) -> None:
    """Print a manifest: accuracy and cost of FP32 and of every artifact, what stayed float, and what went wrong.

    Args:
        manifest: of a run.
        folder: where it lies, for the last line.
        console: where to print; the terminal by default.
    """
    console = console or terminal()
    for table in (_accuracy(manifest), _cost(manifest)):
        if table.row_count:
            console.print(table)
    place = folder / FILE
    where = f"Manifest: {place}" if place.is_file() else f"There is no manifest: {place} could not be written"
    show_lines(console, *_problems(manifest), *_coverage(manifest), where, *_next(manifest, folder))


def _next(manifest: Manifest, folder: Path) -> list[str]:
    """What to do with the artifact that was selected; what to do without one, the lines before say."""
    chosen = next((entry for entry in manifest.artifacts if entry.label == manifest.selected), None)
    if chosen is None or chosen.path is None:
        return []
    factory = ", factory=…" if FORMATS[chosen.format].rebuild else ""
    return [f"Use it: lq_plugin.load({str(folder / chosen.path)!r}{factory})"]


def _groups(manifest: Manifest) -> list[tuple[Fp32, list[Entry]]]:
    """Every FP32 model with the artifacts that are compared with it: those of the same target and weights."""
    groups: list[tuple[Fp32, list[Entry]]] = [(manifest.fp32, [])]
    for entry in manifest.artifacts:
        fp32 = manifest.fp32_of(entry)
        found = next((entries for reference, entries in groups if reference == fp32), None)
        if found is None:
            groups.append((fp32, found := []))
        found.append(entry)
    return groups


def _accuracy(manifest: Manifest) -> Table:
    table = _table("Metrics of the reloaded artifacts", ("FP32", "INT8", "difference"))
    for fp32, entries in _groups(manifest):
        for name, reference in fp32.metrics.items():
            table.add_section()
            add_row(table, name, f"{reference:.4f}")
            for entry in entries:
                if name in entry.metrics:
                    add_row(table, f"  {entry.label}", "", f"{entry.metrics[name]:.4f}", f"{entry.delta[name]:+.4f}")
    return table


def _cost(manifest: Manifest) -> Table:
    table = _table("Fidelity, size and latency", ("SQNR dB", "MB", "ms", "vs torch", "vs best", "status"))
    for fp32, entries in _groups(manifest):
        table.add_section()
        for runtime, latency in fp32.latency_ms.items():
            size = _megabytes(fp32.size_bytes) if runtime == EAGER else ""
            ratio = _ratio(fp32.speedup(latency).vs_torch_fp32)
            fastest = "fastest FP32" if latency == fp32.best else ""
            add_row(table, f"FP32 {runtime}", "", size, f"{latency:.3f}", ratio, "", fastest)
        for entry in entries:
            selected = ", selected" if entry.label == manifest.selected else ""
            add_row(table, entry.label, *_measures(entry), entry.status + selected)
    return table


def _measures(entry: Entry) -> list[str]:
    speedup = entry.speedup or Speedup()
    return [
        "–" if entry.sqnr_db is None else f"{entry.sqnr_db:.1f}",
        _megabytes(entry.size_bytes),
        "–" if entry.median is None else f"{entry.median:.3f}",
        _ratio(speedup.vs_torch_fp32),
        _ratio(speedup.vs_best_fp32),
    ]


def _problems(manifest: Manifest) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for entry in manifest.artifacts:
        if entry.error:
            reasons.setdefault(entry.error, []).append(entry.label)
    # The first line of each: all of it was logged when it happened, and is in the manifest.
    lines = [f"{', '.join(labels)}: {brief(error)}" for error, labels in reasons.items()]
    groups = _groups(manifest)
    for fp32, _ in groups:
        lines += [f"FP32 {runtime} was not measured: {error}" for runtime, error in fp32.errors.items()]
    slower = [entry.label for _, entries in groups for entry in entries if entry.slower_than_fp32]
    larger = [entry.label for fp32, entries in groups for entry in entries if entry.larger_than(fp32)]
    lines += _over_budget(manifest)
    lines += [manifest.unselected] if manifest.unselected else []
    if slower:
        lines.append(f"Slower than the fastest FP32 runtime: {', '.join(slower)}")
    if larger:
        lines.append(f"Larger than FP32: {', '.join(larger)}")
    return lines


def _over_budget(manifest: Manifest) -> list[str]:
    """Which operators cost most, for each candidate that is over the budget, and what can be done about it."""
    lines = []
    for name, operators in manifest.sensitivity.items():
        own = [entry for entry in manifest.artifacts if entry.candidate == name]
        over = [entry.label for entry in own if entry.status == "over_budget"]
        if over and operators:
            worst = ", ".join(f"{each.name} ({each.share:.0%})" for each in operators[:_WORST])
            within = ", ".join(entry.label for entry in own if entry.status == "ok")
            trials = [trial for trial in manifest.trials if trial.candidate == name]
            then = f"within it: {within}" if within and not trials else _searched(trials)
            lines.append(f"Over budget: {', '.join(over)}. INT8 costs most in {worst}; {then}")
    return lines


def _searched(trials: Sequence[Trial]) -> str:
    """What a search has done about it, or would do."""
    if not trials:
        return "Int8Evaluation(search=Search()) would try to leave such operators float"
    if any(trial.within for trial in trials):
        return "what a search has found is within it in the format of its trials alone"
    return f"{counted(len(trials), 'trial')} found no artifact within the budget"


def _coverage(manifest: Manifest) -> list[str]:
    lines: dict[str, list[str]] = {}
    for entry in manifest.artifacts:
        if entry.path is not None:
            counts = Counter(f"{op.op} ({op.reason})" for op in entry.float_ops)
            stays = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
            text = f"{counted(len(entry.quantized_ops), 'operator')} in INT8; float: {stays}"
            if entry.kernels and entry.kernels.fell_back:
                fallen = ", ".join(f"{count} {kind}" for kind, count in entry.kernels.fell_back.items())
                text += f"; runs in float on {entry.runtime}: {fallen}"
            lines.setdefault(text, []).append(entry.label)
    return [f"{', '.join(labels)}: {text}" for text, labels in lines.items()]


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=18)
    for column in columns:
        table.add_column(column, justify="left" if column == "status" else "right", no_wrap=True)
    return table


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.2f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"
