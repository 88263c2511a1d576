"""Which checkpoint is quantized, and what is read from it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lq_plugin.errors import ConfigError, unknown_name
from lq_plugin.graph.copying import detached_copy

CHOICES = ("best", "last", "live")


@dataclass(frozen=True)
class Checkpoint:
    """Weights to quantize.

    Args:
        name: file name, ``"live"`` for the weights in memory.
        global_step: optimizer steps at which it was saved.
        weights: its state dict; ``None`` for the live weights.
        callbacks: state of every callback in it.
    """

    name: str
    global_step: int
    weights: Mapping[str, Any] | None = None
    callbacks: Mapping[str, Any] = field(default_factory=dict)


def check_choice(choice: str) -> str:
    """Check the ``checkpoint`` option: ``"best"``, ``"last"``, ``"live"`` or ``"best:<monitored metric>"``.

    Raises:
        ConfigError: anything else.
    """
    if choice not in CHOICES and not choice.startswith("best:"):
        raise unknown_name("checkpoint", choice, (*CHOICES, "best:<monitored metric>"))
    return choice


def monitored(trainer: Any, choice: str = "best") -> Any:
    """Return the ModelCheckpoint that a choice means, ``None`` where the Trainer has none.

    Raises:
        ConfigError: ``"best:<metric>"`` names a metric that no ModelCheckpoint monitors.
    """
    found = savers(trainer)
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


def savers(trainer: Any) -> list[Any]:
    """Return a Trainer's ModelCheckpoints, of either namespace, in their order; other callbacks may save too."""
    return [callback for callback in trainer.checkpoint_callbacks if hasattr(callback, "best_model_path")]


def read(trainer: Any, choice: str, written_since: float) -> Checkpoint:
    """Read the chosen checkpoint, falling back from best to last to the live weights.

    Args:
        trainer: at the end of fit.
        choice: as checked by :func:`check_choice`.
        written_since: time of day in seconds; a file written since then is this very run's own, and may be read in
            full where the user's hyperparameters need more than tensors and builtins.
    """
    callback = monitored(trainer, choice) if choice != "live" else None
    names = ("last_model_path",) if choice == "last" else ("best_model_path", "last_model_path")
    for path in (Path(getattr(callback, name)) for name in names if callback and getattr(callback, name)):
        if path.is_file():
            return read_file(path, trusted=path.stat().st_mtime >= written_since)
    return Checkpoint("live", trainer.global_step)


def read_file(path: Path, trusted: bool = False) -> Checkpoint:
    """Read a checkpoint of Lightning.

    Args:
        path: the file.
        trusted: whether it is unpickled where it holds more than tensors and plain values, which could run code.

    Raises:
        ConfigError: it is none, or it holds more than tensors and plain values.
    """
    content = _load(path, trusted)
    if not isinstance(content, Mapping) or "state_dict" not in content:
        raise ConfigError(f"checkpoint: {str(path)!r} holds no state_dict. Give a checkpoint that Lightning saved.")
    return Checkpoint(path.name, content.get("global_step", 0), content["state_dict"], content.get("callbacks", {}))


def with_weights(model: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """Return a copy of a LightningModule on the CPU that holds the checkpoint's weights."""
    module = detached_copy(model).cpu()
    if checkpoint.weights is not None:
        weights = {name.replace("_orig_mod.", ""): tensor for name, tensor in checkpoint.weights.items()}
        module.load_state_dict(weights, strict=getattr(module, "strict_loading", True))
    return module


def _load(path: Path, trusted: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not trusted:
            raise ConfigError(
                f"checkpoint: {path.name!r} holds more than tensors and plain values (most likely hyperparameters) "
                "and was not written by this fit, so it is not unpickled, which could run code. Save plain "
                "hyperparameters; a file that you trust is read in full by lq-quantize weights_only=false."
            ) from error
        return torch.load(path, map_location="cpu", weights_only=False)
