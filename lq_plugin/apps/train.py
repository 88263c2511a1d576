"""``lq-train``: fit a model and leave with proven INT8 artifacts, everything chosen by configuration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from lq_plugin import ArtifactExport, Int8Evaluation
from lq_plugin.apps import command
from lq_plugin.errors import ConfigError

# What Lightning warns of and the user of this command cannot act on.
SILENCED = (
    "The '.*_dataloader' does not have many workers",  # workers are the data module's business
    "Experiment logs directory .* exists and is not empty",  # the run folder holds Hydra's files already
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning 2.6 on torch 2.13
)


def main() -> None:
    """Entry point of ``lq-train``."""
    command.run("lq-train", train, config_name="train")


def train(config: DictConfig) -> float | None:
    """Fit, with quantization, export and evaluation as callbacks.

    Args:
        config: composed from ``conf/train.yaml``.

    Returns:
        The selected artifact's value of the budget's metric, for Hydra's sweepers; ``None`` where there is none.

    Raises:
        ConfigError: something that has to be chosen is not, before anything is built.
    """
    check(config)
    for message in SILENCED:
        warnings.filterwarnings("ignore", message)
    seed_everything(config.seed, workers=True, verbose=False)
    data, model = instantiate(config.data), instantiate(config.model)
    callbacks = [instantiate(callback) for callback in config.callbacks.values() if callback]
    trainer: Trainer = instantiate(
        config.trainer, callbacks=callbacks, logger=instantiate(config.logger) if config.logger else False
    )
    for exporter in callbacks:
        if isinstance(exporter, ArtifactExport):
            exporter.run_config = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
    trainer.fit(model, datamodule=data, ckpt_path=config.ckpt_path)
    return next((objective(c.manifest) for c in callbacks if isinstance(c, Int8Evaluation) and c.manifest), None)


def check(config: DictConfig) -> None:
    """Refuse a configuration with gaps.

    Raises:
        ConfigError: naming the option and how it is given.
    """
    for key in sorted(OmegaConf.missing_keys(config)):
        group = key.removesuffix("._target_")
        raise ConfigError(
            f"{key}: not given. Choose a whole run with recipe=NAME, or write {key}="
            + (f"IMPORT.PATH, or {group}=NAME." if group != key else "VALUE.")
        )
    for name, callback in config.callbacks.items():
        if callback and "_target_" not in callback:
            raise ConfigError(
                f"callbacks.{name}: it has options but no _target_, so there is nothing to set them on. "
                f"Choose the group that makes it (for callbacks.static: quantization=static), or leave the options out."
            )


def objective(manifest: Mapping[str, Any]) -> float | None:
    """Return what a sweep optimizes: the selected artifact's value of the budget's metric."""
    for artifact in manifest["artifacts"]:
        if f"{artifact['candidate']}/{artifact['format']}" == manifest["selected"]:
            return cast("float | None", artifact["metrics"].get(manifest["budget"]["metric"]))
    return None


if __name__ == "__main__":
    main()
