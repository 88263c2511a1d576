"""Long work says what it is doing."""

from __future__ import annotations

from lq_plugin.printing import show_lines, terminal

_said: set[str] = set()  # in this run


def note(text: str) -> None:
    """Tell the user what is going on, or where something came from or went."""
    show_lines(terminal(), f"lq_plugin: {text}")


def note_once(text: str) -> None:
    """Tell the user something that is found again and again in a run."""
    if text not in _said:
        _said.add(text)
        note(text)


def begin_run() -> None:
    """Let a run say again what earlier runs of this process have said."""
    _said.clear()
