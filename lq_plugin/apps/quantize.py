"""``lq-quantize``: quantize, export and evaluate a finished checkpoint, without training."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate, to_absolute_path
from omegaconf import DictConfig

from lq_plugin import checksums
from lq_plugin.apps import command, fits, kept_job
from lq_plugin.apps.kept_fit import IGNORED
from lq_plugin.apps.objectives import objectives
from lq_plugin.apps.train import built, check, outcome, plain, swept
from lq_plugin.callbacks.finishing import RunContext
from lq_plugin.callbacks.untrained import without_training
from lq_plugin.checkpoints import content, read_file
from lq_plugin.errors import ConfigError
from lq_plugin.progress import note
from lq_plugin.store import STORE, Store
from lq_plugin.torch_file import foreign_in, walk

_OF_LIGHTNING_CLI = ("_instantiator", "_class_path")  # it makes modules from what their checkpoints name


def main() -> None:
    """Entry point of ``lq-quantize``."""
    command.run("lq-quantize", quantize, config_name="quantize")


def quantize(config: DictConfig) -> float | tuple[float, ...] | None:
    """Do everything that ``lq-train`` does, except training.

    The model is built with the hyperparameters in the checkpoint, except those given on the command line. A calibration
    in the checkpoint is used where it fits the options; else one pass over the validation data makes one.

    Args:
        config: composed from ``conf/quantize.yaml``.

    Raises:
        LqError: a required choice is missing, the file is not a checkpoint, or no candidate can be made.
    """
    check(config)
    path = Path(to_absolute_path(config.ckpt_path))
    content(path, "ckpt_path")
    data, model, trainer = built(config, lambda node: load_model(node, path, config.weights_only))
    trainer.callbacks.append(RunContext(plain(config), command=command.again("lq-quantize")))
    if not config.fit.reuse:
        store = Store(Path(trainer.default_root_dir) / STORE, advice=IGNORED)
        without_training(trainer, model, data, lambda choice: read_file(path), store)
        return outcome(trainer, config.objectives)
    # Below the folder of the run it would be of no use to the next one.
    fit = fits.digest(config)
    store = Store(Path(to_absolute_path(config.fit.folder)) / f"{fit}.store", keeps_calibrations=True, advice=IGNORED)
    weights = checksums.of_json([fit, sorted(_given())])
    job = kept_job.of(config, store, weights) if swept() else None
    if job is not None and (known := job.taken_over(weights)):
        return objectives(known, config.objectives)
    without_training(trainer, model, data, lambda choice: read_file(path), store)
    found = outcome(trainer, config.objectives)
    if job is not None:
        job.keep(weights, trainer)
    return found


def load_model(node: DictConfig, path: Path, weights_only: bool = True) -> Any:
    """Make a model with the arguments in its checkpoint, except those given on the command line.

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
    source: Path | BinaryIO = path
    if weights_only:
        source, saved = _plain(path, made.keywords)
    else:
        saved = _unpickled(path).get("hyper_parameters", {})
    given = _given()
    arguments = {k: value for k, value in made.keywords.items() if k not in saved or k in given}
    try:
        with warnings.catch_warnings():
            # A model may build layers later: its weights are loaded again, strictly, when it is quantized.
            warnings.filterwarnings("ignore", "Found keys that are (not )?in the (model state dict|checkpoint)")
            return made.func.load_from_checkpoint(source, "cpu", strict=False, weights_only=weights_only, **arguments)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"ckpt_path: {path.name!r} does not fit {node._target_} ({error}). Choose the model that saved it, and "
            "give the arguments that it did not save as +model.NAME=VALUE."
        ) from error


def _given() -> set[str]:
    """Return the model's arguments on the command line, which have precedence over those in a checkpoint."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    options = (override.lstrip("+").partition("=")[0] for override in overrides)
    return {option.removeprefix("model.") for option in options if option.startswith("model.")}


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except Exception as error:  # whatever it names may raise anything
        raise ConfigError(
            f"ckpt_path: {path.name!r} cannot be unpickled ({type(error).__name__}: {error}). Make the classes in it "
            "importable from this folder, or save plain hyperparameters only."
        ) from error


def _plain(path: Path, given: Collection[str]) -> tuple[BinaryIO, Collection[str]]:
    """Copy the plain values of a checkpoint, for Lightning to make the model from.

    Args:
        path: the checkpoint.
        given: names of the hyperparameters that the configuration has.

    Returns:
        The copy, and the names of the hyperparameters in it.

    Raises:
        ConfigError: a hyperparameter is not a plain value, and no value is given for it.
    """
    found = content(path, "ckpt_path")
    saved = found.get("hyper_parameters", {})
    saved = saved if isinstance(saved, dict) else {"NAME": saved}  # saved as an object of some class
    foreign = {name: kind for name, value in saved.items() if (kind := _kind(value, "_instantiator" in saved))}
    for name, kind in foreign.items():
        if name not in given:
            raise ConfigError(
                f"ckpt_path: {path.name!r} has hyperparameters that are not plain values ({name}: {kind}). Give "
                f"+model.{name}=VALUE, or, for a file that you fully trust, weights_only=false, which can run code."
            )
        note(f"model.{name} is taken from the configuration: in the checkpoint, it is not a plain value ({kind})")
    known = {name: value for name, value in saved.items() if name not in foreign and name not in _OF_LIGHTNING_CLI}
    copy = io.BytesIO()
    torch.save(
        {key: value for key, value in found.items() if not foreign_in(value)} | {"hyper_parameters": known}, copy
    )
    copy.seek(0)
    return copy, known


def _kind(value: Any, instantiated: bool) -> str | None:
    """Return which code a hyperparameter would run, ``None`` where it is plain."""
    if instantiated and any(isinstance(part, dict) and "class_path" in part for part in walk(value)):
        return "a class_path, which would be imported"  # by Lightning, for checkpoints of its command line
    return foreign_in(value)


if __name__ == "__main__":
    main()
