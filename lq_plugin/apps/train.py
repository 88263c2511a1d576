"""``lq-train``: fit a model and get measured INT8 artifacts, with everything chosen by configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object, instantiate, to_absolute_path
from lightning import seed_everything
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig, OmegaConf, open_dict

from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, StaticQuantization
from lq_plugin.apps import command, fits, kept_job, loggers
from lq_plugin.apps.kept_fit import Fit
from lq_plugin.apps.objectives import OVER_BUDGET, check_directions, objectives
from lq_plugin.callbacks.finishing import RunContext
from lq_plugin.callbacks.quantizing import quantizing
from lq_plugin.callbacks.untrained import without_training
from lq_plugin.checkpoints import content, read_file
from lq_plugin.errors import ConfigError, EvaluationError, ExportError
from lq_plugin.printing import brief
from lq_plugin.progress import note
from lq_plugin.torch_file import foreign_in

# Warnings of Lightning that the user of this command cannot act on.
SILENCED = (
    "The '.*_dataloader' does not have many workers",  # workers are the data module's business
    "Experiment logs directory .* exists and is not empty",  # the run folder holds Hydra's files already
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning 2.6 on torch 2.13
)
# What the options of a group set, and the callbacks that this applies to, whatever their names.
HANDED_DOWN = {
    "observer": {"observer": "static"},
    "algorithms": {"algorithms": "static", "dynamic_algorithms": "dynamic"},
}
METHODS = {"static": StaticQuantization, "dynamic": DynamicQuantization}
KEYWORDS = ("best", "last", "hpc", "registry")  # which Lightning resolves itself


def main() -> None:
    """Entry point of ``lq-train``."""
    command.run("lq-train", train, config_name="train")


def train(config: DictConfig) -> float | tuple[float, ...] | None:
    """Fit, with quantization, export and evaluation as callbacks; a cached fit is reused.

    Args:
        config: composed from ``conf/train.yaml``.

    Returns:
        The values of ``config.objectives`` for the selected artifact, for Hydra's sweepers; ``None`` where none was
        selected.

    Raises:
        ConfigError: a required choice is missing; raised before anything is built.
    """
    check(config)
    data, model, trainer = built(config)
    check_resumed(config, trainer)
    resumed = {"ckpt_path": config.ckpt_path, "weights_only": config.weights_only}
    if not fits.shared(trainer, config.fit):
        trainer.callbacks.append(RunContext(plain(config), command=command.again("lq-train")))
        trainer.fit(model, datamodule=data, **resumed)
        return outcome(trainer, config.objectives)
    fit = Fit(Path(to_absolute_path(config.fit.folder)) / fits.digest(config))
    trainer.callbacks.append(RunContext(plain(config), fit.store, command.again("lq-train")))
    job = kept_job.of(config, fit.store, fit.folder.name) if swept() else None
    with fit.claimed(config.paths.output_dir):
        if trains := not fit.usable():
            note(f"fitting; the fit is cached in {fit.folder}")
            trainer.callbacks.append(fits.KeepFit(fit))
            trainer.fit(model, datamodule=data, **resumed)
    if not trains:
        if job is not None and (known := job.taken_over(fit.weights)):
            return objectives(known, config.objectives)
        note(f"the cached fit in {fit.folder} is reused")
        without_training(trainer, model, data, lambda choice: read_file(fit.checkpoint(choice)), fit.store)
    found = outcome(trainer, config.objectives)
    if job is not None:
        job.keep(fit.weights, trainer)
    return found


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as builtins for the manifest, without the path of a private key."""
    made = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
    for callback in made["callbacks"].values():
        if callback and callback.get("sign") is not None:
            callback["sign"] = command.KEY
    return made


def built(config: DictConfig, make_model: Callable[[DictConfig], Any] = instantiate) -> tuple[Any, Any, Any]:
    """Make data, model and Trainer of a configuration.

    Args:
        config: of the whole run.
        make_model: makes the model of its section.

    Raises:
        ConfigError: the sweeper optimizes an objective in the wrong direction.
    """
    for message in SILENCED:
        warnings.filterwarnings("ignore", message)
    seed_everything(config.seed, workers=True, verbose=False)
    data, model = instantiate(config.data), make_model(config.model)
    callbacks = [instantiate(callback) for callback in config.callbacks.values() if callback]
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers.made(config.logger))
    if HydraConfig.initialized():
        told = cast("dict[str, Any]", OmegaConf.to_container(HydraConfig.get().sweeper, enum_to_str=True))
        for evaluation in callbacks:
            if isinstance(evaluation, Int8Evaluation):
                check_directions(told.get("direction"), config.objectives, evaluation.expected_budget(trainer))
    return data, model, trainer


def check(config: DictConfig) -> None:
    """Refuse a configuration with gaps, and let the chosen observer and algorithms reach every callback.

    In a sweep, options of a callback that a job does not have are ignored: not every combination is meaningful.

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
            if swept():
                note(f"this job of the sweep has no callbacks.{name}, so its options are ignored")
                config.callbacks[name] = None
                continue
            raise ConfigError(
                f"callbacks.{name}: it has options but no _target_, so there is nothing to set them on. "
                f"Choose the group that makes it (for callbacks.static: quantization=static), or leave the options out."
            )
    _hand_down(config)


def _hand_down(config: DictConfig) -> None:
    """Let callbacks that were written by hand refer to the chosen observer and algorithms, as our own do."""
    for group, keys in HANDED_DOWN.items():
        chosen = {key: method for key, method in keys.items() if config.get(key) is not None}
        nodes = [
            (node, key)
            for key, method in chosen.items()
            for node in config.callbacks.values()
            if node and _makes(node, METHODS[method])
        ]
        if chosen and not nodes:
            _check_applies(group, list(chosen.values()))
        for node, key in nodes:
            with open_dict(node):
                node.setdefault(group, f"${{{key}}}")


def _check_applies(group: str, methods: Sequence[str]) -> None:
    """Refuse a group that was chosen and applies to nothing, except in a sweep."""
    missing = f"no {' or '.join(methods)} quantization"
    if swept():
        note(f"this job of the sweep has {missing}, so {group}= is ignored")
        return
    adding = " or ".join(f"quantization={method}" for method in methods)
    raise ConfigError(
        f"{group}: chosen, but there is {missing} that it could apply to. Add {adding}, or leave {group}= out."
    )


def _makes(node: DictConfig, kind: type) -> bool:
    try:
        made = get_object(node._target_)
    except (ImportError, ValueError):
        return False  # instantiating it says what is wrong
    return isinstance(made, type) and issubclass(made, kind)


def swept() -> bool:
    """Whether this is a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def check_resumed(config: DictConfig, trainer: Any) -> None:
    """Refuse to resume from a file that is not a checkpoint, before Lightning reads it.

    Raises:
        ConfigError: it is not one, or would have to be unpickled, which the user has not asked for.
    """
    given = config.ckpt_path
    if given is None or given in KEYWORDS or "://" in given or given.startswith("registry:"):
        return  # Lightning looks for it, and reads it without unpickling
    path = Path(to_absolute_path(given))
    if path.is_dir() and type(trainer.strategy).load_checkpoint is not Strategy.load_checkpoint:
        return  # sharded, and saved by such a strategy
    foreign = foreign_in(content(path, "ckpt_path"))
    if config.weights_only and foreign:
        raise ConfigError(
            f"ckpt_path: {given!r} holds a {foreign}, which would have to be unpickled, and that can run code. Save "
            "plain hyperparameters only, or resume from a file that you fully trust with weights_only=false."
        )


def outcome(trainer: Any, names: Sequence[str]) -> float | tuple[float, ...] | None:
    """Return what a sweeper optimizes, for the run that has just ended.

    Args:
        trainer: whose callbacks have finished.
        names: of the objectives.

    Raises:
        ExportError: no artifact was made.
        EvaluationError: the artifacts could not be evaluated or judged, or a search found none within the budget, and
            ``"over_budget"`` is no objective.
    """
    exporters = [callback for callback in trainer.callbacks if isinstance(callback, ArtifactExport)]
    manifest = next((exporter.manifest for exporter in exporters), None)
    if exporters and manifest is None and trainer.is_global_zero:
        errors = dict.fromkeys(brief(callback.error) for callback in quantizing(trainer) if callback.error is not None)
        raise ExportError(f"export: no artifact was made. {' '.join(errors)}")
    made = manifest.artifacts if manifest is not None else ()
    if made and all(entry.status in ("failed", "unsupported") for entry in made):
        labels: dict[str, list[str]] = {}
        for entry in made:
            labels.setdefault(f"{entry.status}: {brief(entry.error)}", []).append(entry.label)
        reasons = "; ".join(f"{', '.join(failed)} {reason}" for reason, failed in labels.items())
        raise ExportError(f"export: no artifact was made. {reasons}")
    for evaluation in trainer.callbacks:
        if isinstance(evaluation, Int8Evaluation) and evaluation.error is not None:
            raise EvaluationError(f"evaluation: the artifacts were made, but not judged. {brief(evaluation.error)}")
        if isinstance(evaluation, Int8Evaluation) and evaluation.unmet is not None and OVER_BUDGET not in names:
            raise EvaluationError(evaluation.unmet)
    return objectives(manifest, names)


if __name__ == "__main__":
    main()
