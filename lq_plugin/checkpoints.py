"""Lightning's checkpoints: read without unpickling anything, and loaded into a copy of the module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lq_plugin import torch_file
from lq_plugin.errors import ConfigError
from lq_plugin.graph.copying import cpu_copy

LIVE = "live"
# What makes one file of the folder that a strategy saves. It is Lightning's own code, and is not called here because it
# unpickles the folder. Neither of the two commands makes a checkpoint of the other strategy's folder (Lightning 2.6).
CONVERSIONS = {
    "FSDPStrategy": "python -m lightning.pytorch.utilities.consolidate_checkpoint FOLDER",
    "ModelParallelStrategy": "python -m lightning.fabric.utilities.consolidate_checkpoint FOLDER",
    "DeepSpeedStrategy": "convert_zero_checkpoint_to_fp32_state_dict in lightning.pytorch.utilities.deepspeed",
}


@dataclass(frozen=True)
class Checkpoint:
    """Weights to quantize.

    Args:
        name: file name, ``"live"`` for the weights in memory.
        global_step: optimizer steps done when it was saved.
        weights: its state dict; ``None`` for the live weights.
        callbacks: state of every callback in it.
    """

    name: str
    global_step: int
    weights: Mapping[str, Any] | None = None
    callbacks: Mapping[str, Any] = field(default_factory=dict)


def content(path: Path, argument: str = "checkpoint") -> dict[str, Any]:
    """Read a whole checkpoint, with a :class:`~lq_plugin.torch_file.Foreign` in place of whatever is not plain.

    Args:
        path: the file.
        argument: the option that named it, for the error.

    Raises:
        ConfigError: it is not a checkpoint, or its weights hold more than tensors and plain values.
    """
    try:
        if path.is_dir():
            raise ValueError(f"is a folder, as sharded strategies save; convert it to one file: {_conversions()}")
        found = torch_file.read(path)
        if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
            raise ValueError("holds no state_dict")
        _check(found)
    except ValueError as error:
        raise ConfigError(f"{argument}: {str(path)!r} {error}. Give a checkpoint that Lightning saved.") from error
    return found


def read_file(path: Path) -> Checkpoint:
    """Read a checkpoint of Lightning.

    Raises:
        ConfigError: it is not a checkpoint, or its weights hold more than tensors and plain values.
    """
    found = content(path)
    states = found.get("callbacks")
    known = {key: state for key, state in states.items() if isinstance(state, dict)} if isinstance(states, dict) else {}
    return Checkpoint(path.name, found["global_step"], found["state_dict"], known)


def _conversions() -> str:
    return ", ".join(f"{command} ({strategy})" for strategy, command in CONVERSIONS.items())


def _check(found: Mapping[str, Any]) -> None:
    step, weights = found.get("global_step"), found["state_dict"]
    if not isinstance(found.get("pytorch-lightning_version"), str):
        raise ValueError("does not say which version of Lightning saved it")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"has a global_step of {step!r}; it must be a number of steps")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"has a {type(name).__name__} as a key of its state_dict; it must be a name")
        if foreign := torch_file.foreign_in(value):
            raise ValueError(f"has a {foreign} as {name!r} in its state_dict, which would have to be unpickled")


def with_weights(model: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """Return a copy of a LightningModule on the CPU that holds the checkpoint's weights.

    Raises:
        ConfigError: the weights belong to another model.
    """
    module = cpu_copy(model)
    if checkpoint.weights is None:
        return module
    weights = OrderedDict((_plain(name), tensor) for name, tensor in checkpoint.weights.items())
    versions = getattr(checkpoint.weights, "_metadata", None)
    if isinstance(versions, dict):  # modules read it to load what an earlier version of them saved
        weights._metadata = {_plain(str(name)): version for name, version in versions.items()}  # type: ignore[attr-defined]
    try:
        module.load_state_dict(weights, strict=getattr(module, "strict_loading", True))
    except RuntimeError as error:
        raise ConfigError(
            f"checkpoint: {checkpoint.name!r} does not fit {type(model).__name__} ({' '.join(str(error).split())}). "
            "Give a checkpoint that this model saved."
        ) from error
    return module


def _plain(name: str) -> str:
    """Return a weight's name without what torch.compile adds to it."""
    return name.replace("_orig_mod.", "")
