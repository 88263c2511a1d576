"""The Trainer's own progress bar shows what happens after training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    kinds = {kind.__name__ for kind in type(bar).__mro__}
    if "RichProgressBar" in kinds and bar.progress is not None and bar.progress.live.is_started:
        return Display(partial(_write_beside, bar.progress.console), partial(_running_in, bar.progress))
    if "TQDMProgressBar" in kinds and sys.stdout.isatty():
        return Display(running=_running_in_tqdm)
    return Display()


def _write_beside(console: Any, text: str) -> None:
    """Print a line above bars that are being drawn, unless its console cannot: such as one that only knows ASCII."""
    try:
        show_lines(console, text)
    except Exception:
        show_lines(terminal(), text)


@contextmanager
def _running_in(progress: Any, what: str) -> Iterator[None]:
    task = progress.add_task(escape(line(what)), total=float("inf"))  # which Lightning's columns draw as a pulse
    try:
        yield
    finally:
        progress.remove_task(task)


@contextmanager
def _running_in_tqdm(what: str) -> Iterator[None]:
    with Tqdm(desc=line(what), bar_format="{desc} …", leave=False, file=sys.stdout, dynamic_ncols=True):
        yield
