"""What a multirun needs around its jobs; imported to print the help too, so it imports nothing but Hydra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

# Folders of jobs that belong to this multirun and ran in another one, for its leaderboard; a sweeper adds them.
elsewhere: list[Path] = []


class Sweep(Callback):
    """Keeps ``HydraConfig`` set between and after the jobs of a multirun, when it would otherwise be empty."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Set it; each job restores it at its end."""
        HydraConfig.instance().set_config(config)
