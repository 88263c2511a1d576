"""Fits that were done before: kept by what decides their outcome, and shared by jobs, processes and runs.

The folder of a fit is named after a digest of the training configuration and of the code. It holds ``fit.json``, the
checkpoints, and the calibrations that were made of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, to_absolute_path
from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, StaticQuantization
from lq_plugin.apps import sources
from lq_plugin.artifacts.base import sha256
from lq_plugin.callbacks import checkpoint as checkpoints
from lq_plugin.callbacks.quantizing import QuantizingCallback, quantizing
from lq_plugin.graph.calibration import Calibration
from lq_plugin.progress import note

RECORD = "fit.json"
LIVE = "live.ckpt"
_NEEDED = ("state_dict", "global_step", "epoch", "pytorch-lightning_version")  # of a checkpoint
# Callbacks that leave a training bit for bit as it is.
AFTER_TRAINING = (StaticQuantization, DynamicQuantization, ArtifactExport, Int8Evaluation)


def training(config: DictConfig) -> dict[str, Any]:
    """Return the part of a configuration that decides how a fit turns out."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    callbacks = {name: node for name, node in plain["callbacks"].items() if node and _trains(node["_target_"])}
    trainer = {name: value for name, value in plain["trainer"].items() if name != "default_root_dir"}
    kept = {name: plain[name] for name in ("data", "model", "seed", "ckpt_path")}
    return kept | {"trainer": trainer, "callbacks": callbacks}


def digest(config: DictConfig) -> str:
    """Name a fit after its training configuration and the code behind it; where a run writes decides nothing.

    Args:
        config: of the whole run, after the random generators were seeded.
    """
    decisive = training(config)
    resumed = Path(to_absolute_path(config.ckpt_path or ""))
    content = {
        "training": _without_run_folder(decisive),
        "seed": os.environ["PL_GLOBAL_SEED"],  # what no seed in the configuration stands for
        # Our own code too: calibrations are kept beside a fit.
        "code": sources.versions([Fit, *map(get_object, _targets(decisive))]),
        "checkpoint": sha256(resumed) if resumed.is_file() else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _without_run_folder(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_run_folder(item) for key, item in node.items()}
    if isinstance(node, list):
        return [_without_run_folder(item) for item in node]
    return node.replace(HydraConfig.get().runtime.output_dir, "") if isinstance(node, str) else node


def _trains(target: str) -> bool:
    made = get_object(target)
    return not (isinstance(made, type) and issubclass(made, AFTER_TRAINING))


def _targets(node: Any) -> Iterator[str]:
    """Everything that is instantiated in a configuration, however deep."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    for item in node if isinstance(node, list) else ():
        yield from _targets(item)


class Fit:
    """One fit, done or to be done.

    Args:
        folder: what is kept of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder.parent / f"{folder.name}.lock")

    @property
    def done(self) -> bool:
        """Whether it was done to the end."""
        return (self.folder / RECORD).is_file()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Wait until no other job does this very fit, and keep the others waiting until it is done."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release(force=True)

    def keep(self, trainer: Any) -> None:
        """Keep the checkpoints of a fit that has just ended, and let others take them."""
        scratch = self.folder.with_name(f"{self.folder.name}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        whole = scratch / "whole.ckpt"
        trainer.save_checkpoint(whole)
        _copy(whole, scratch / LIVE, trainer)
        whole.unlink()
        kept, copies = {"live": LIVE}, dict[str, str]()
        for callback in checkpoints.savers(trainer):
            best, last = callback.best_model_path, callback.last_model_path
            for choice, file in (("best", best or last), (f"best:{callback.monitor}", best), ("last", last or best)):
                if not file or choice in kept:
                    continue
                if file not in copies:
                    copies[file] = f"{len(copies)}/{Path(file).name}"
                    (scratch / copies[file]).parent.mkdir()
                    _copy(Path(file), scratch / copies[file], trainer)
                kept[choice] = copies[file]
        (scratch / RECORD).write_text(json.dumps({"checkpoints": kept}, indent=1))
        shutil.rmtree(self.folder, ignore_errors=True)
        scratch.rename(self.folder)
        self._lock.release(force=True)

    def checkpoint(self, choice: str) -> Path:
        """Return the file that a callback's ``checkpoint`` option means; the last weights where there is none."""
        kept = json.loads((self.folder / RECORD).read_text())["checkpoints"]
        return self.folder / str(kept.get(choice, kept["live"]))

    def calibrations(self) -> list[Calibration]:
        """Return all calibrations that were made of this fit's checkpoints after training."""
        return [
            Calibration.from_state_dict(torch.load(file, weights_only=True))
            for file in sorted((self.folder / "calibrations").glob("*.pt"))
        ]

    def keep_calibration(self, calibration: Calibration) -> None:
        """Keep a calibration for another export."""
        folder = self.folder / "calibrations"
        folder.mkdir(exist_ok=True)
        file = folder / f"{calibration.provenance.observed}-{calibration.provenance.global_step}.pt"
        scratch = folder / f".{file.name}.{os.getpid()}"
        torch.save(calibration.state_dict(), scratch)
        scratch.rename(file)


def _copy(source: Path, file: Path, trainer: Any) -> None:
    """Copy a checkpoint, without what could not be read again but by unpickling it: hyperparameters, other states."""
    try:
        torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        content = torch.load(source, map_location="cpu", weights_only=False)  # this very fit has written it
        states = {callback.state_key for callback in quantizing(trainer)}
        callbacks = {key: state for key, state in content["callbacks"].items() if key in states}
        torch.save({key: content[key] for key in _NEEDED} | {"callbacks": callbacks}, file)
    else:
        shutil.copyfile(source, file)


class KeepFit(Callback):
    """Keeps a fit when training ends, before anything is quantized."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep it; a run that was broken off never gets here."""
        if trainer.interrupted:
            return
        try:
            self.fit.keep(trainer)
        except Exception as error:  # the run itself goes on
            note(f"the fit is not kept for other jobs ({type(error).__name__}: {error})")


def reuse(fit: Fit, callbacks: Sequence[Callback]) -> None:
    """Let quantizing callbacks take a fit's checkpoints and calibrations."""
    for callback in callbacks:
        if isinstance(callback, QuantizingCallback):
            callback.given = fit.checkpoint(callback.checkpoint)
        if isinstance(callback, StaticQuantization):
            callback.known = fit.calibrations()


def keep_calibrations(fit: Fit, trainer: Any) -> None:
    """Keep the calibrations that a run's candidates were made with, beside a fit that was kept."""
    for callback in quantizing(trainer):
        if fit.done and isinstance(callback, StaticQuantization) and callback.candidate is not None:
            fit.keep_calibration(callback.candidate.calibration)


def shared(trainer: Any, options: Mapping[str, Any]) -> bool:
    """Whether a fit may be kept and taken from others: asked for, and done by one process."""
    return bool(options["reuse"]) and trainer.world_size == 1 and not trainer.fast_dev_run
