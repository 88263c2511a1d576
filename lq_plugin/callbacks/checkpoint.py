"""Which checkpoint of a Trainer is quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lq_plugin.checkpoints import LIVE, Checkpoint, read_file
from lq_plugin.errors import ConfigError, unknown_name
from lq_plugin.progress import note

CHOICES = ("best", "last", LIVE)


def check_choice(choice: str) -> str:
    """Check the ``checkpoint`` option: ``"best"``, ``"last"``, ``"live"`` or ``"best:<monitored metric>"``.

    Raises:
        ConfigError: anything else.
    """
    if choice not in CHOICES and not (choice.startswith("best:") and choice != "best:"):
        raise unknown_name("checkpoint", choice, (*CHOICES, "best:<monitored metric>"))
    return choice


def monitored(trainer: Any, choice: str = "best") -> Any:
    """Return the ModelCheckpoint that a choice means, ``None`` where the Trainer has none.

    Raises:
        ConfigError: ``"best:<metric>"`` names a metric that no ModelCheckpoint monitors.
    """
    found = model_checkpoints(trainer)
    if choice.startswith("best:"):
        wanted = choice.removeprefix("best:")
        named = [callback for callback in found if callback.monitor == wanted]
        if not named:
            raise ConfigError(
                f"checkpoint: {choice!r} names a metric that no ModelCheckpoint of this Trainer monitors. "
                f"Monitored: {[callback.monitor for callback in found]}."
            )
        return named[0]
    return found[0] if found else None


def model_checkpoints(trainer: Any) -> list[Any]:
    """Return a Trainer's ModelCheckpoints, of either namespace, in its list's order; other callbacks may save too."""
    return [callback for callback in trainer.checkpoint_callbacks if hasattr(callback, "best_model_path")]


def read(trainer: Any, choice: str) -> Checkpoint:
    """Read the chosen checkpoint, falling back from best to last to the live weights, with a note.

    The path of the best one may come from a resumed checkpoint, so its file is trusted no more than any other.

    Args:
        trainer: at the end of fit.
        choice: as checked by :func:`check_choice`.
    """
    callback = monitored(trainer, choice) if choice != LIVE else None
    names = ("last_model_path",) if choice == "last" else ("best_model_path", "last_model_path")
    for path in (Path(getattr(callback, name)) for name in names if callback and getattr(callback, name)):
        if path.is_file():
            if str(path) != getattr(callback, names[0]):
                note(f"checkpoint: {choice!r} no longer exists, so {path.name!r} is quantized instead")
            return read_file(path)
        if path.exists():
            note(f"the checkpoint {str(path)!r} is not a file (sharded strategies save folders) and is not quantized")
    if choice != LIVE:
        note(f"checkpoint: none was saved for {choice!r}, so the weights in memory are quantized")
    return Checkpoint(LIVE, trainer.global_step)
