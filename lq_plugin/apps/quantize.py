"""``lq-quantize``: quantize, export and evaluate a finished checkpoint, without training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate, to_absolute_path
from omegaconf import DictConfig

from lq_plugin.apps import command
from lq_plugin.apps.train import built, check, finish, outcome
from lq_plugin.callbacks.checkpoint import read_file
from lq_plugin.callbacks.quantizing import quantizing
from lq_plugin.errors import ConfigError


def main() -> None:
    """Entry point of ``lq-quantize``."""
    command.run("lq-quantize", quantize, config_name="quantize")


def quantize(config: DictConfig) -> float | tuple[float, ...] | None:
    """Do everything that ``lq-train`` does but train.

    The model is built with the hyperparameters that the checkpoint holds, but for those given on the command line. A
    calibration that the checkpoint holds is used where it fits the options; else one pass over the validation data
    makes one.

    Args:
        config: composed from ``conf/quantize.yaml``.

    Raises:
        ConfigError: something that has to be chosen is not, or the checkpoint is none.
    """
    check(config)
    path = Path(to_absolute_path(config.ckpt_path))
    if not path.is_file():
        raise ConfigError(f"ckpt_path: {config.ckpt_path!r} is no file. Give a checkpoint that Lightning saved.")
    read_file(path, trusted=not config.weights_only)
    data, model, trainer = built(config, lambda node: load_model(node, path, config.weights_only), untrained=True)
    for callback in quantizing(trainer):
        callback.given, callback.trusted = path, not config.weights_only
    finish(trainer, model, data)
    return outcome(trainer, config.objectives)


def load_model(node: DictConfig, path: Path, weights_only: bool = True) -> Any:
    """Make a model with the arguments that its checkpoint holds, but for those given on the command line.

    Args:
        node: the model's section of the configuration.
        path: a checkpoint of Lightning.
        weights_only: whether it is read without unpickling anything.

    Raises:
        ConfigError: the checkpoint is not one of this model.
    """
    made = instantiate(node, _partial_=True)
    if not hasattr(made.func, "load_from_checkpoint"):  # a function, which knows its arguments itself
        return made()
    saved = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True).get("hyper_parameters", {})
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    arguments = {k: value for k, value in made.keywords.items() if k not in saved or f"model.{k}" in given}
    try:
        with warnings.catch_warnings():
            # A model may build layers later: its weights are loaded again, strictly, when it is quantized.
            warnings.filterwarnings("ignore", "Found keys that are (not )?in the (model state dict|checkpoint)")
            return made.func.load_from_checkpoint(path, "cpu", strict=False, weights_only=weights_only, **arguments)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"ckpt_path: {path.name!r} does not fit {node._target_} ({error}). Choose the model that saved it, and "
            "give what it did not save of its arguments as +model.NAME=VALUE."
        ) from error


if __name__ == "__main__":
    main()
