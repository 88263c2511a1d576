"""Long work says what it is doing."""

from __future__ import annotations

from lq_plugin.printing import show_lines, terminal


def note(text: str) -> None:
    """Tell the user what is going on, or where something came from or went."""
    show_lines(terminal(), f"lq_plugin: {text}")
