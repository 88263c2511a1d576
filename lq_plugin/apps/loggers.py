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
        section: a logger, or loggers by their names.

    Returns:
        The loggers; ``False`` for none, because a Trainer takes an empty list for its default logger.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    _end_run_of_an_earlier_job()
    nodes = [section] if "_target_" in section else list(section.values())
    return [instantiate(node) for node in nodes if node] or False


def _end_run_of_an_earlier_job() -> None:
    """End W&B's run in this process, or the jobs of a sweep would all be one run."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
