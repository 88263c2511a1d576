"""Fits that were done before: kept by what decides their outcome, and shared by jobs, processes and runs.

The folder of a fit is named after a digest of the training configuration and of the code. It holds ``fit.json``, the
checkpoints, and the calibrations that were made of them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from hydra.utils import get_class
from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from lq_plugin import ArtifactExport, Int8Evaluation, StaticQuantization
from lq_plugin.callbacks.export import quantizing
from lq_plugin.callbacks.quantizing import QuantizingCallback
from lq_plugin.graph.calibration import Calibration
from lq_plugin.report.table import note

RECORD = "fit.json"
LIVE = "live.ckpt"
AFTER_TRAINING = (QuantizingCallback, ArtifactExport, Int8Evaluation)  # they leave a training bit for bit as it is
_PACKAGES = ("torch", "lightning", "torchmetrics", "lq_plugin")


def training(config: DictConfig) -> dict[str, Any]:
    """Return the part of a configuration that decides how a fit turns out."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    callbacks = {name: node for name, node in plain["callbacks"].items() if node and _trains(node["_target_"])}
    trainer = {name: value for name, value in plain["trainer"].items() if name != "default_root_dir"}
    kept = {name: plain[name] for name in ("data", "model", "seed", "ckpt_path")}
    return kept | {"trainer": trainer, "callbacks": callbacks}


def digest(config: DictConfig, run_folder: str) -> str:
    """Name a fit after its training configuration and the code behind it.

    Args:
        config: of the whole run.
        run_folder: where the run writes, which decides nothing.
    """
    content = {
        "training": training(config),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "sources": _sources([config.model._target_, config.data._target_]),
    }
    text = json.dumps(content, sort_keys=True, default=str).replace(run_folder, "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _trains(target: str) -> bool:
    made = get_class(target)
    return not issubclass(made, AFTER_TRAINING)


def _sources(targets: Sequence[str]) -> dict[str, str]:
    """Digests of the modules that the targets are defined in and of those next to them that are imported."""
    packages = {inspect.getmodule(get_class(target)).__name__.rpartition(".")[0] for target in targets}  # type: ignore[union-attr]
    alone = {inspect.getmodule(get_class(target)).__name__ for target in targets}  # type: ignore[union-attr]
    files = {
        name: file
        for name, module in list(sys.modules.items())
        if (name in alone or any(package and name.startswith(f"{package}.") for package in packages))
        and (file := getattr(module, "__file__", None)) is not None
    }
    return {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in sorted(files.items())}


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
        trainer.save_checkpoint(scratch / LIVE)
        kept, copies = {"live": LIVE}, dict[str, str]()
        for callback in trainer.checkpoint_callbacks:
            best, last = (getattr(callback, f"{name}_model_path", "") for name in ("best", "last"))
            for choice, file in (("best", best or last), (f"best:{callback.monitor}", best), ("last", last or best)):
                if not file or choice in kept:
                    continue
                if file not in copies:
                    copies[file] = f"{len(copies)}/{Path(file).name}"
                    (scratch / copies[file]).parent.mkdir()
                    shutil.copyfile(file, scratch / copies[file])
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


class KeepFit(Callback):
    """Keeps a fit when training ends, before anything is quantized."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep it; a run that was broken off never gets here."""
        if not trainer.interrupted:
            self.fit.keep(trainer)


def reuse(fit: Fit, callbacks: Sequence[Callback]) -> None:
    """Let quantizing callbacks take a fit's checkpoints and calibrations."""
    known = {(made.provenance.observed, made.provenance.global_step): made for made in fit.calibrations()}
    for callback in callbacks:
        if isinstance(callback, QuantizingCallback):
            callback.given = fit.checkpoint(callback.checkpoint)
        if isinstance(callback, StaticQuantization):
            fitting = [made for (observed, _), made in known.items() if observed == callback.observed()]
            callback.known = fitting[0] if fitting else None
            if callback.known is not None:
                note(f"calibration of {callback.name!r} taken from {fit.folder}")


def keep_calibrations(fit: Fit, trainer: Any) -> None:
    """Keep the calibrations that a run's candidates were made with."""
    for callback in quantizing(trainer):
        if isinstance(callback, StaticQuantization) and callback.candidate is not None:
            fit.keep_calibration(callback.candidate.calibration)


def shared(trainer: Any, options: Mapping[str, Any]) -> bool:
    """Whether a fit may be kept and taken from others: asked for, and done by one process."""
    return bool(options["reuse"]) and trainer.world_size == 1 and not trainer.fast_dev_run
