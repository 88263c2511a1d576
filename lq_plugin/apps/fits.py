"""The cache of finished fits: each is named by what decides its outcome, and shared by jobs, processes and runs.

The folder of a fit is named after a digest of the training configuration and of the code; see
:mod:`lq_plugin.apps.kept_fit` for what is in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object, to_absolute_path
from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, StaticQuantization, checksums
from lq_plugin.apps import sources
from lq_plugin.apps.kept_fit import Fit
from lq_plugin.progress import note

# Callbacks that leave training as it is, bit for bit.
AFTER_TRAINING = (StaticQuantization, DynamicQuantization, ArtifactExport, Int8Evaluation)


def training(config: DictConfig) -> dict[str, Any]:
    """Return the part of a configuration that determines the outcome of a fit."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    callbacks = {name: node for name, node in plain["callbacks"].items() if node and _trains(node["_target_"])}
    trainer = {name: value for name, value in plain["trainer"].items() if name != "default_root_dir"}
    kept = {name: plain[name] for name in ("data", "model", "seed", "ckpt_path")}
    return kept | {"trainer": trainer, "callbacks": callbacks}


def digest(config: DictConfig) -> str:
    """Name a fit after its training configuration and the code behind it; output folders do not matter.

    Args:
        config: of the whole run, after the random generators were seeded.
    """
    decisive = training(config)
    resumed = Path(to_absolute_path(config.ckpt_path or ""))
    content = {
        "training": without_folder(decisive, config.paths.output_dir),
        "seed": os.environ["PL_GLOBAL_SEED"],  # the seed in use, which the configuration may leave open
        # Our own code too: the checkpoints hold calibrations.
        "code": sources.versions([Fit, *map(get_object, targets(decisive))]),
        "checkpoint": checksums.of_file(resumed) if resumed.is_file() else None,
    }
    return checksums.of_json(content, default=str)[:16]


def without_folder(node: Any, folder: str) -> Any:
    """Return a configuration with its paths below a folder as they are seen from there."""
    if isinstance(node, Mapping):
        return {key: without_folder(item, folder) for key, item in node.items()}
    if isinstance(node, list):
        return [without_folder(item, folder) for item in node]
    inside = isinstance(node, str) and f"{node}{os.sep}".startswith(f"{folder}{os.sep}")
    return node[len(folder) :] if inside else node


def _trains(target: str) -> bool:
    made = get_object(target)
    return not (isinstance(made, type) and issubclass(made, AFTER_TRAINING))


def targets(node: Any) -> Iterator[str]:
    """Everything that is instantiated in a configuration, however deep."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    for item in node if isinstance(node, list) else ():
        yield from targets(item)


class KeepFit(Callback):
    """Puts a fit into the cache when training ends, before anything is quantized."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep it; an interrupted run never gets here."""
        if trainer.interrupted:
            return
        try:
            self.fit.keep(trainer)
        except Exception as error:  # the run itself goes on
            note(f"the fit is not cached for other jobs ({type(error).__name__}: {error})")


def shared(trainer: Any, options: Mapping[str, Any]) -> bool:
    """Whether a fit may be cached and reused: asked for, and run by one process."""
    return bool(options["reuse"]) and trainer.world_size == 1 and not trainer.fast_dev_run
