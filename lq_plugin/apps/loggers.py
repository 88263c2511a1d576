"""The loggers of a command: one, or several by their names as in the Lightning-Hydra template."""

from __future__ import annotations

import os
import sys
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

# What these packages print or send of their own accord. A user who has set one of these keeps it.
QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # the tables of its database that it makes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_QUIET": "true",  # a list of all figures; where the run lies and how it is sent is still said
    "WANDB_ERROR_REPORTING": "false",
}


def made(section: DictConfig) -> list[Any] | bool:
    """Make the loggers of a configuration.

    Args:
        section: loggers by their names, or one alone, as a file without ``@package`` in a user's own group has it.

    Returns:
        The loggers; ``False`` for none, because a Trainer takes an empty list for its default logger.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    _end_run_of_an_earlier_job()
    nodes = [section] if "_target_" in section else list(section.values())
    return [_instantiated(node) for node in nodes if node] or False


def _instantiated(node: DictConfig) -> Any:
    logger = instantiate(node)
    # Lightning hands W&B a setting that has no effect any more, even where nobody gives it, and W&B warns of it.
    settings = vars(logger).get("_wandb_init")
    if isinstance(settings, dict) and settings.get("anonymous", "given") is None:
        del settings["anonymous"]
    return logger


def _end_run_of_an_earlier_job() -> None:
    """End W&B's run in this process, or the jobs of a sweep would all be one run."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
