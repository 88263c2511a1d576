"""``lq-quantize``: quantize, export and evaluate a finished checkpoint, without training."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig, open_dict

from lq_plugin.apps import command
from lq_plugin.apps.train import built, check, finish, outcome
from lq_plugin.callbacks.checkpoint import read_file
from lq_plugin.callbacks.export import quantizing
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
    path = Path(config.ckpt_path)
    if not path.is_file():
        raise ConfigError(f"ckpt_path: {str(path)!r} is no file. Give a checkpoint that Lightning saved.")
    read_file(path)
    _take_hyperparameters(config, path)
    data, model, trainer = built(config, limit_train_batches=0)
    for callback in quantizing(trainer):
        callback.given = path
    finish(trainer, model, data)
    return outcome(trainer, config.objectives)


def _take_hyperparameters(config: DictConfig, path: Path) -> None:
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(
        "hyper_parameters", {}
    )
    known = inspect.signature(get_class(config.model._target_)).parameters
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    with open_dict(config.model):
        for name, value in saved.items():
            if name in known and f"model.{name}" not in given:
                config.model[name] = value


if __name__ == "__main__":
    main()
