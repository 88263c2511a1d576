"""Long work says what it is doing."""

from __future__ import annotations

from lq_plugin.printing import show_lines, terminal


def note(text: str) -> None:
    """Say what is going on, or where something was taken from or left."""
    show_lines(terminal(), f"lq_plugin: {text}")
