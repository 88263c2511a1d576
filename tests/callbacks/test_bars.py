"""Steps after training are shown in the style of the Trainer's own progress bar, each on one line with its time."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rich
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.progress import MofNCompleteColumn
from tiny import Images, Tiny, fit

from lq_plugin import ArtifactExport, Int8Evaluation, StaticQuantization
from lq_plugin.callbacks.bars import display_of
from lq_plugin.progress import doing, note, shown_on
from lq_plugin.report import table

STEPS = ("exporting static/pt2", "evaluating FP32", "evaluating static/pt2")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def fitted(folder: Path, *bars: TQDMProgressBar | RichProgressBar) -> None:
    quantizing = [StaticQuantization(algorithms=()), ArtifactExport(["pt2"]), Int8Evaluation(latency=None)]
    fit(folder, Tiny(), *quantizing, *bars, data=Images(), enable_progress_bar=bool(bars))


@pytest.fixture
def console() -> Iterator[io.StringIO]:
    """A terminal that Rich draws on."""
    drawn = io.StringIO()
    yield drawn
    rich.reconfigure()


def test_each_step_is_one_line_above_a_rich_bar_which_ends_before_the_table(
    tmp_path: Path, console: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    bar = RichProgressBar(console_kwargs={"file": console, "force_terminal": True, "width": 150})
    drawn: list[bool] = []
    monkeypatch.setattr(table, "show", lambda *_: drawn.append(bar.progress.live.is_started))  # type: ignore[union-attr]
    fitted(tmp_path, bar)
    assert drawn == [False]
    shown = ESCAPES.sub("", console.getvalue())
    for what in STEPS:
        assert len(re.findall(rf"lq_plugin: {what}: \d+\.\d s\n", shown)) == 1
        assert re.search(rf"lq_plugin: {what} +\S*━+", shown)  # while it ran


class Counting(RichProgressBar):
    """Has a column that cannot draw a task without an end."""

    def configure_columns(self, trainer: Any) -> list[Any]:
        return [MofNCompleteColumn()]


def test_a_column_that_cannot_draw_a_step_costs_nothing(
    tmp_path: Path, console: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(tmp_path, Counting(console_kwargs={"file": console, "force_terminal": True, "width": 150}))
    assert "static/pt2" in capsys.readouterr().out  # the table
    assert (tmp_path / "quantized" / "static" / "pt2").is_dir()


def test_without_bars_steps_are_not_shown_but_results_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(tmp_path)
    shown = capsys.readouterr().out
    assert not any(what in shown for what in STEPS)
    assert shown.count("Fidelity, size and latency") == 1
    assert "Use it" not in shown.splitlines()[-1]  # nothing is selected without latency


def test_with_a_tqdm_bar_that_is_no_terminal_steps_are_plain_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(tmp_path, TQDMProgressBar())
    shown = capsys.readouterr().out
    for what in STEPS:
        assert len(re.findall(rf"lq_plugin: {what}: \d+\.\d s\n", shown)) == 1


def test_bars_that_are_disabled_are_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Trainer:
        progress_bar_callback = TQDMProgressBar(refresh_rate=0)

    with shown_on(display_of(Trainer())), doing("a step") as outcome:
        outcome.append("done")
        note("said all the same")
    assert capsys.readouterr().out == "lq_plugin: said all the same\n"


def test_nothing_is_said_of_a_step_that_raises(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), doing("a step"):
        raise ValueError("no")
    with doing("another") as outcome:
        outcome.append("kept")
    assert re.fullmatch(r"lq_plugin: another: kept, 0\.0 s\n", capsys.readouterr().out)
