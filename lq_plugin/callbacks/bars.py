"""The Trainer's own progress bar shows what happens after training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from rich.markup import escape

from lq_plugin.printing import line, show_lines, terminal
from lq_plugin.progress import Display


def display_of(trainer: Any) -> Display:
    """Return where a Trainer's progress is shown; steps are not shown where its bars are off.

    Args:
        trainer: a bar of either of Lightning's namespaces is known by its name; any other kind gets plain lines.
    """
    bar = trainer.progress_bar_callback
    if bar is None or getattr(bar, "is_disabled", False):
        return Display(steps=False)
    if (drawn := _drawn(bar)) is not None:
        return Display(partial(_write, partial(show_lines, drawn.console)), partial(_running_in, drawn))
    if "TQDMProgressBar" in _kinds(bar) and sys.stdout.isatty():
        return Display(partial(_write, lambda text: Tqdm.write(line(text), file=sys.stdout)), _running_in_tqdm)
    return Display()


def end(trainer: Any) -> None:
    """Stop drawing a bar. Whatever is printed below a bar that is being drawn is overwritten."""
    if (drawn := _drawn(trainer.progress_bar_callback)) is not None:
        with suppress(Exception):  # a column of the user's may fail; the results are shown all the same
            drawn.stop()


def _drawn(bar: Any) -> Any:
    """Rich's progress of a bar, if it is being drawn on a terminal; else ``None``."""
    progress = getattr(bar, "progress", None) if "RichProgressBar" in _kinds(bar) else None
    drawn = progress is not None and progress.live.is_started and progress.console.is_terminal
    return progress if drawn else None


def _kinds(bar: Any) -> set[str]:
    return {kind.__name__ for kind in type(bar).__mro__}


def _write(write: Callable[[str], None], text: str) -> None:
    """Print a line above bars that are being drawn, unless it knows only ASCII, or is gone."""
    try:
        write(text)
    except Exception:
        show_lines(terminal(), text)


@contextmanager
def _running_in(progress: Any, what: str) -> Iterator[None]:
    """Whatever a column of the user's does with a task that has no end, the step is done."""
    before = set(progress.task_ids)
    with suppress(Exception):
        progress.add_task(escape(line(what)), total=float("inf"))  # which Lightning's columns draw as a pulse
    try:
        yield
    finally:
        with suppress(Exception):
            for task in set(progress.task_ids) - before:
                progress.remove_task(task)
            progress.refresh()


@contextmanager
def _running_in_tqdm(what: str) -> Iterator[None]:
    with Tqdm(desc=line(what), bar_format="{desc} …", leave=False, file=sys.stdout, dynamic_ncols=True):
        yield
