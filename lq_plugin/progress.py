"""Long work says what it is doing."""

from __future__ import annotations

from rich.console import Console


def note(text: str) -> None:
    """Say what is going on, or where something was taken from or left."""
    Console().print(f"lq_plugin: {text}", markup=False, highlight=False, soft_wrap=True)
