"""The sweeper where Hydra looks for it: it makes none from elsewhere.

Hydra imports this at the start of every Hydra application, so it imports neither Optuna nor torch.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lq_plugin.apps.optuna_options import Composed, Options
from lq_plugin.errors import require

ConfigStore.instance().store(group="hydra/sweeper", name="lq_optuna", node=Options, provider="lq_plugin")


class OptunaSweeper(Sweeper):
    """Lets Optuna choose the jobs, in a study that outlives a killed sweep and that several sweeps may work on.

    Args:
        options: see :class:`~lq_plugin.apps.optuna_options.Options`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = Options(**options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra composed, and make the launcher that runs the jobs."""
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.composed = Composed(config, hydra_context.config_loader, launcher)

    def sweep(self, arguments: list[str]) -> None:
        """Run jobs until the study has its trials.

        Args:
            arguments: overrides of the command line; those with several values are searched.

        Raises:
            MissingExtraError: Optuna is not installed.
        """
        require("optuna", extra="sweep", purpose="hydra/sweeper: lq_optuna")
        from lq_plugin.apps.optuna_sweep import optimize

        optimize(self.composed, self.options, arguments)
