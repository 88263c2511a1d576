"""Long work says what it is doing, and how long each step took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

from lq_plugin.printing import show_lines, terminal

_said: set[str] = set()  # in this run


def _printed(text: str) -> None:
    show_lines(terminal(), text)


@dataclass(frozen=True)
class Display:
    """How the steps of a run are shown.

    Args:
        write: prints a line.
        running: shows a text for as long as a step runs.
        steps: whether steps are shown at all.
    """

    write: Callable[[str], None] = _printed
    running: Callable[[str], AbstractContextManager[object]] = nullcontext
    steps: bool = True


_PLAIN = Display()
_display: ContextVar[Display] = ContextVar("display", default=_PLAIN)


@contextmanager
def shown_on(display: Display) -> Iterator[None]:
    """Show what happens inside the block on another display."""
    before = _display.set(display)
    try:
        yield
    finally:
        _display.reset(before)


def note(text: str) -> None:
    """Tell the user where something came from or went, or what to expect."""
    _display.get().write(f"lq_plugin: {text}")


@contextmanager
def doing(what: str) -> Iterator[list[str]]:
    """Show a step while it runs, and then, on one line, what came of it and how long it took.

    Args:
        what: the step, as in ``"exporting static/onnx"``. Nothing is said of one that raises: its error will be.

    Yields:
        A list to add the outcome to, where there is more to say than that the step is done.
    """
    display, start, outcome = _display.get(), time.perf_counter(), list[str]()
    if not display.steps:
        yield outcome
        return
    with display.running(f"lq_plugin: {what}"):
        yield outcome
    note(f"{what}: {', '.join([*outcome, _duration(time.perf_counter() - start)])}")


def note_once(text: str) -> None:
    """Tell the user something that is found again and again in a run."""
    if text not in _said:
        _said.add(text)
        note(text)


def begin_run() -> None:
    """Let a run say again what earlier runs of this process have said."""
    _said.clear()


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
