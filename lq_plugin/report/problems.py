"""What went wrong in a run and what is worse than FP32, as sentences for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

from lq_plugin.learning import Trial
from lq_plugin.printing import brief, counted
from lq_plugin.report.board import groups
from lq_plugin.report.manifest import Manifest

_WORST = 3  # how many operators are named


def problems(manifest: Manifest) -> list[str]:
    """Return in a line each: errors, artifacts that are slower or larger than FP32, and those over the budget."""
    reasons: dict[str, list[str]] = {}
    for entry in manifest.artifacts:
        if entry.error:
            reasons.setdefault(entry.error, []).append(entry.label)
    # The first line of each: all of it was logged when it happened, and is in the manifest.
    lines = [f"{', '.join(labels)}: {brief(error)}" for error, labels in reasons.items()]
    found = groups(manifest)
    for fp32, _ in found:
        lines += [f"FP32 {runtime} was not measured: {error}" for runtime, error in fp32.errors.items()]
    slower = [entry.label for _, entries in found for entry in entries if entry.slower_than_fp32]
    larger = [entry.label for fp32, entries in found for entry in entries if entry.larger_than(fp32)]
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
            searched = bool(trials) or bool((manifest.config.evaluation or {}).get("search"))
            then = f"within it: {within}" if within and not trials else _searched(searched, trials)
            lines.append(f"Over budget: {', '.join(over)}. INT8 costs most in {worst}; {then}")
    return lines


def _searched(searched: bool, trials: Sequence[Trial]) -> str:
    """What a search has done about it, or would do."""
    if not searched:
        return "Int8Evaluation(search=Search()) would look for operators to leave float"
    if not trials:
        return "the search tried nothing: it takes static candidates with several such operators, within time_limit"
    if any(trial.within for trial in trials):
        return "a search found an artifact within the budget, but only in the format that it tried"
    return f"{counted(len(trials), 'trial')} found no artifact within the budget"
