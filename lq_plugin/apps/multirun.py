"""What a multirun needs around its jobs; imported to print the help too, so it imports nothing but Hydra."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Sweep(Callback):
    """Keeps ``HydraConfig`` set between and after the jobs of a multirun, when it would otherwise be empty."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Set it; each job restores it at its end."""
        HydraConfig.instance().set_config(config)
