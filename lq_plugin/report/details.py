"""What INT8 costs in a run and what was done about it: operators, algorithms and trials as tables and plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from lq_plugin.learning import AlgorithmStep, Sensitivity, Trial
from lq_plugin.printing import figure
from lq_plugin.report.manifest import Manifest, computable
from lq_plugin.report.plots import Bar, Point, bars, curve
from lq_plugin.selection import Budget

MOST = 20  # rows of a table and bars of a plot; a large model has thousands of operators
_NAMED = 5  # operators in one sentence


@dataclass(frozen=True)
class Section:
    """A table about one run, and a plot of it. Any cell may hold a name from outside.

    Args:
        title: of the table.
        columns: their headings, and on which side their cells are aligned: numbers on the ``right``.
        rows: their cells, as text.
        more: what the table leaves out; empty if it holds everything.
        plot: as SVG; empty if there is none.
        caption: of the plot.
    """

    title: str
    columns: Mapping[str, Literal["left", "right"]]
    rows: Sequence[Sequence[str]]
    more: str = ""
    plot: str = ""
    caption: str = ""


def sections(manifest: Manifest) -> list[Section]:
    """Return what a manifest says about operators, algorithms and trials; nothing for what it does not hold.

    Args:
        manifest: of one run, from anywhere.
    """
    budget, trials = manifest.budget, dict[str, list[Trial]]()
    for trial in manifest.trials:
        trials.setdefault(trial.candidate, []).append(trial)
    return [
        *(_operators(name, ranking) for name, ranking in manifest.sensitivity.items() if ranking),
        *([_algorithms(manifest.steps)] if manifest.steps else []),
        *(_search(name, made, budget) for name, made in trials.items() if budget is not None),
        *([_notes(manifest.notes)] if manifest.notes else []),
    ]


def _notes(notes: Mapping[str, Sequence[str]]) -> Section:
    rows = [(candidate, text) for candidate, said in notes.items() for text in said]
    return Section("Notes", dict.fromkeys(("candidate", "note"), "left"), rows[:MOST], _left_out(len(rows), "note"))


def _operators(candidate: str, ranking: Sequence[Sensitivity]) -> Section:
    totals = accumulate(each.share for each in ranking)
    shown = [(each, _percent(each.share), _percent(total)) for each, total in zip(ranking[:MOST], totals, strict=False)]
    rest, left = len(ranking) - len(shown), _percent(sum(each.share for each in ranking[MOST:]))
    return Section(
        f"Most costly operators of {candidate}",
        {"operator": "left", "type": "left", "share of error": "right", "cumulative": "right"},
        [(each.name, each.op, share, total) for each, share, total in shown],
        f"{rest} more operator{'s have' if rest > 1 else ' has'} {left} of the error." if rest else "",
        bars(
            [
                Bar(each.name, each.share, f"{each.name} ({each.op}): {share}, up to here {total}")
                for each, share, total in shown
            ],
            f"Error that INT8 causes in {candidate}, by operator",
            f"A bar for each of the {len(shown)} most costly operators of {len(ranking)}; the table lists the same.",
        ),
        "Share of the error that quantized inputs and weights cause at the outputs.",
    )


def _algorithms(steps: Sequence[AlgorithmStep]) -> Section:
    return Section(
        "Algorithms",
        {
            **dict.fromkeys(("candidate", "algorithm", "outcome", "on"), "left"),
            **dict.fromkeys(("dB before", "dB after", "s"), "right"),
            "reason": "left",
        },
        [
            (
                step.candidate,
                step.algorithm,
                step.outcome.replace("_", " "),
                ", ".join(step.kept_on or step.before),
                *(figure(decibels, ".1f") for decibels in _decisive(step)),
                figure(step.seconds, ".1f"),
                step.reason,
            )
            for step in steps[:MOST]
        ],
        "dB: SQNR on held-out samples, on the runtime where it rose least, of those it is kept on. "
        f"{_left_out(len(steps), 'step')}".strip(),
    )


def _decisive(step: AlgorithmStep) -> tuple[float | None, float | None]:
    """SQNR before and after a step, on the runtime where it rose least; of those it is kept on, if there are any."""
    both = [runtime for runtime in step.kept_on or step.before if runtime in step.after]
    if not both:
        return min(step.before.values(), default=None), None
    runtime = min(both, key=lambda each: step.after[each] - step.before[each])
    return step.before[runtime], step.after[runtime]


def _search(candidate: str, trials: Sequence[Trial], budget: Budget) -> Section:
    return Section(
        f"Search for operators of {candidate} to leave float",
        {
            **dict.fromkeys(("trial", "left float", "in INT8", f"drop of {budget.metric}"), "right"),
            "budget": "left",
            "s": "right",
        },
        [
            (
                str(number),
                str(len(trial.float_ops)),
                _percent(trial.int8_share),
                _drop(trial.drop, budget),
                _result(trial),
                figure(trial.seconds, ".1f"),
            )
            for number, trial in enumerate(trials[:MOST], start=1)
        ],
        " ".join(filter(None, (_left_out(len(trials), "trial"), _outcome(trials)))),
        *_curve(candidate, trials, budget),
    )


def _curve(candidate: str, trials: Sequence[Trial], budget: Budget) -> tuple[str, str]:
    """The plot of a search and its caption; empty where no trial was measured."""
    points, limit = list(_points(trials, budget)), computable(budget.max_drop)
    if not points or limit is None:
        return "", ""
    return (
        curve(
            points,
            limit,
            ("more operators in INT8 →", f"↓ better: drop of {budget.metric}"),
            budget.relative,
            f"Search for {candidate}: drop of {budget.metric} against the share of operators in INT8",
            f"A point for each of {len(points)} measured trials; the table lists the same.",
        ),
        "Filled: within the budget. Outlined: the one that was chosen. Hollow: over the budget.",
    )


def _points(trials: Sequence[Trial], budget: Budget) -> Iterator[Point]:
    chosen = _chosen(trials)
    for number, trial in enumerate(trials):
        drop = computable(trial.drop)
        if drop is not None and 0 <= trial.int8_share <= 1:
            kind = "winner" if number == chosen else "within" if trial.within else "over"
            told = f"trial {number + 1}: {_percent(trial.int8_share)} in INT8, drop {_drop(drop, budget)}"
            yield Point(trial.int8_share, drop, kind, told)


def _result(trial: Trial) -> str:
    if trial.drop is None:
        return "not measured"
    return "within" if trial.within else "over"


def _chosen(trials: Sequence[Trial]) -> int | None:
    """Each trial within the budget leaves fewer operators float than the one within it before: the last one counts."""
    return max((number for number, trial in enumerate(trials) if trial.within), default=None)


def _outcome(trials: Sequence[Trial]) -> str:
    chosen = _chosen(trials)
    if chosen is None:
        return "No trial is within the budget."
    return f"Trial {chosen + 1} was chosen; it leaves float: {_named(trials[chosen].float_ops)}."


def _drop(value: float | None, budget: Budget) -> str:
    return figure(value, ".2f", 100, " %") if budget.relative else figure(value, ".4f")


def _percent(share: float) -> str:
    return figure(share, ".1f", 100, " %")


def _named(operators: Sequence[str]) -> str:
    rest = len(operators) - _NAMED
    return ", ".join(operators[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _left_out(count: int, what: str) -> str:
    rest = count - MOST
    return f"{rest} more {what}{'' if rest == 1 else 's'} in the manifest." if rest > 0 else ""
