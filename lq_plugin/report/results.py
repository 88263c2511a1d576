"""The results that runs left on disk, found from a Trainer or a folder, whichever object made them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lq_plugin.errors import ConfigError
from lq_plugin.printing import line
from lq_plugin.progress import note
from lq_plugin.report import manifest
from lq_plugin.report.manifest import Manifest
from lq_plugin.report.runs import QUANTIZED, below


@dataclass(frozen=True)
class Results:
    """The results that one run left on disk.

    Args:
        folder: where its artifacts and its ``manifest.json`` are.
        manifest: the content of ``manifest.json``.
        artifacts: the folder of every artifact by ``"<candidate>/<format>"``, for :func:`lq_plugin.load`.
    """

    folder: Path
    manifest: Manifest
    artifacts: Mapping[str, Path]

    @property
    def selected(self) -> Path | None:
        """The folder of the fastest artifact within the budget; ``None`` where none was judged, or FP32 is faster."""
        return self.artifacts.get(self.manifest.selected or "")


def find_results(trainer_or_folder: Any) -> list[Results]:
    """Find the results that runs left on disk, newest first.

    Some libraries copy the callbacks and the Trainer that they are given, and the copies do the work. The original
    objects then know nothing of the results, but the folders do.

    Args:
        trainer_or_folder: a Trainer: the folder that its ``ArtifactExport`` writes to, or, if that was in no fit,
            whatever is below the folders of its loggers or else its ``default_root_dir``. Or a folder: of a run, its
            ``quantized``, or any folder above several runs. Links are not followed.

    Raises:
        ConfigError: nothing was found, or nothing that can be read; the message names the places searched.
    """
    for folders in _places(trainer_or_folder):
        files = {file.resolve() for folder in folders for file in _manifests(folder)}
        if files:
            return _read(sorted(files, key=_written, reverse=True))
    searched = ", ".join(dict.fromkeys(str(folder) for folders in _places(trainer_or_folder) for folder in folders))
    raise ConfigError(
        f"trainer_or_folder: no run has left a {QUANTIZED}/{manifest.FILE} in {searched}. ArtifactExport writes it "
        "when fit ends: add ArtifactExport() to the callbacks, or give the folder that it wrote to."
    )


def _places(given: Any) -> list[list[Path]]:
    """Where to look: in all of the first folders, and in later ones where there is nothing in those."""
    if isinstance(given, str | os.PathLike):
        return [[Path(given)]]
    if not hasattr(given, "callbacks") or not hasattr(given, "default_root_dir"):
        raise ConfigError(
            f"trainer_or_folder: {type(given).__name__} is neither a Trainer nor the path of a folder. Give either."
        )
    # By name, because a module that needs no Lightning cannot import the callback.
    exporters = [one for one in given.callbacks if any(k.__name__ == "ArtifactExport" for k in type(one).__mro__)]
    known = [one.folder for one in exporters if one.folder is not None]
    if known:
        return [known]
    asked = [Path(one.output_dir) for one in exporters if one.output_dir is not None]
    # Not trainer.log_dir, which every process has to ask for at the same time.
    logged = [getattr(one, "log_dir", None) or one.save_dir for one in given.loggers]
    return [asked, [Path(folder) for folder in logged if folder], [Path(given.default_root_dir)]]


def _manifests(folder: Path) -> list[Path]:
    if (folder / manifest.FILE).is_file():
        return [folder / manifest.FILE]
    return [file for file in below([folder], (manifest.FILE,)) if file.parent.name == QUANTIZED]


def _written(file: Path) -> float:
    return file.stat().st_mtime


def _read(files: list[Path]) -> list[Results]:
    """Read manifests; one that cannot be read does not affect the others."""
    found: list[Results] = []
    refused: list[str] = []
    for file in files:
        try:
            content = manifest.read(file)
            found.append(Results(file.parent, content, _artifacts(file.parent, content)))
        except (OSError, ValueError) as error:
            refused.append(line(f"{file} cannot be read ({error})"))
    if not found:
        raise ConfigError(f"trainer_or_folder: {'; '.join(refused)}. Run again, or give another folder.")
    for reason in refused:
        note(f"{reason}; it is left out")
    return found


def _artifacts(folder: Path, content: Manifest) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in content.artifacts:
        if entry.path is None:
            continue
        if not (folder / entry.path).resolve().is_relative_to(folder):
            raise ValueError(f"the artifact {entry.path!r} is not a folder in it")
        found[entry.label] = folder / entry.path
    return found
