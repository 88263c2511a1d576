"""Artifacts of every candidate, and the manifest, when fit ends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lq_plugin.artifacts.base import DEFAULT_FORMATS, FORMATS, check_formats, export_one, formats_of
from lq_plugin.callbacks.copyable import CopyableCallback
from lq_plugin.callbacks.ending import after_training, say
from lq_plugin.callbacks.quantizing import QuantizingCallback, quantizing
from lq_plugin.errors import ConfigError, UnsupportedError
from lq_plugin.progress import note
from lq_plugin.report import manifest
from lq_plugin.report.environment import environment
from lq_plugin.report.manifest import Config, Entry, Fp32, Manifest
from lq_plugin.selection import Budget


class ArtifactExport(CopyableCallback):
    """Export every candidate when fit ends, to ``<folder of the run>/quantized/<candidate>/<format>``.

    A format that fails is listed in the manifest with its reason, and does not stop the others.

    Args:
        formats: any of ``"onnx"`` (for onnxruntime), ``"openvino"`` and ``"pt2"``. Dynamic candidates are exported as
            ``"torch"`` too. What a method cannot have is listed in the manifest as unsupported.
        output_dir: folder of the run; the Trainer's ``log_dir``, else its ``default_root_dir``, by default.

    Attributes:
        folder: where artifacts and ``manifest.json`` are, known once fit started.
        manifest: the content of ``manifest.json`` after fit.
        run_config: builtins stored in the manifest as the configuration of the whole run.

    Raises:
        ConfigError: an unknown format, or, before training, a folder that cannot be written.
        MissingExtraError: a format needs a package that is not installed.
    """

    def __init__(self, formats: Sequence[str] = DEFAULT_FORMATS, output_dir: str | None = None) -> None:
        self.formats = check_formats(formats)
        self.output_dir = output_dir
        self.folder: Path | None = None
        self.manifest: Manifest | None = None
        self.run_config: Mapping[str, Any] = {}
        self._entries: list[Entry] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that there is something to export and a folder to write to."""
        if stage != "fit":
            return
        self._entries = self.manifest = None
        if not quantizing(trainer):
            raise ConfigError(
                "ArtifactExport: no callback of this Trainer makes a candidate. Add StaticQuantization() or "
                "DynamicQuantization() to callbacks."
            )
        for callback in quantizing(trainer):
            self._check_method(callback.scheme.method)
        self.folder = Path(self.output_dir or trainer.log_dir or trainer.default_root_dir) / "quantized"
        if trainer.is_global_zero:
            _check_writable(self.folder)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Export, unless another callback asked for it already."""
        with after_training(trainer, self) as alone:
            if alone and self._entries is None:
                self.entries(trainer, pl_module)

    def entries(self, trainer: Any, pl_module: Any) -> list[Entry]:
        """Return what became of every candidate in every format, made at the first call, and write the manifest."""
        if self._entries is None:
            self._remove_manifest()
            self._entries = [
                self._entry(trainer, pl_module, callback, name)
                for callback in quantizing(trainer)
                for name in formats_of(callback.scheme.method, self.formats)
            ]
            self.write(trainer, self._entries)
        return self._entries

    def _remove_manifest(self) -> None:
        """Let no manifest of an earlier run stand beside the artifacts of this one, even if this one is killed."""
        assert self.folder is not None
        try:
            (self.folder / manifest.FILE).unlink(missing_ok=True)
        except OSError as error:
            say(f"{str(self.folder / manifest.FILE)!r} of an earlier run cannot be removed", error)

    def write(
        self,
        trainer: Any,
        entries: Sequence[Entry],
        *,
        fp32: Fp32 | None = None,
        budget: Budget | None = None,
        selected: str | None = None,
        evaluation: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write the manifest with what is known, and return it.

        Args:
            trainer: whose callbacks made it.
            entries: the artifacts' entries.
            fp32: the float model of the first target.
            budget: that judged.
            selected: label of the artifact that was selected.
            evaluation: options of the evaluation, where there was one.
        """
        assert self.folder is not None
        seed = os.environ.get("PL_GLOBAL_SEED")
        content = Manifest(
            fp32=fp32 or Fp32(),
            artifacts=tuple(entries),
            selected=selected,
            budget=budget,
            calibration={
                callback.name: vars(callback.candidate.provenance)
                for callback in quantizing(trainer)
                if callback.candidate is not None
            },
            environment=environment(),
            seed=int(seed) if seed is not None else None,
            config=self._config(trainer, evaluation),
        )
        self.manifest = content
        try:
            manifest.write(self.folder, content)
        except OSError as error:
            place = self.folder / manifest.FILE
            say(f"{str(place)!r} cannot be written; what it would hold is in ArtifactExport.manifest", error)
        return content

    def _config(self, trainer: Any, evaluation: Mapping[str, Any] | None) -> Config:
        return Config(
            quantization={callback.name: callback.options() for callback in quantizing(trainer)},
            export={"formats": list(self.formats), "output_dir": self.output_dir},
            evaluation=evaluation,
            run=self.run_config,
        )

    def _check_method(self, method: str) -> None:
        if all(method in FORMATS[name].refuses for name in formats_of(method, self.formats)):
            reasons = {name: FORMATS[name].refuses[method] for name in self.formats}
            raise ConfigError(f"formats: none of {list(self.formats)} can be made of a {method} candidate: {reasons}.")

    def _entry(self, trainer: Any, pl_module: Any, callback: QuantizingCallback, format_name: str) -> Entry:
        assert self.folder is not None
        method = callback.scheme.method
        entry = Entry(callback.name, method, FORMATS[format_name].runtime, format_name)
        candidate = callback.build(trainer, pl_module)
        if candidate is None:
            return replace(entry, status="failed", error=callback.error)
        try:
            if method not in FORMATS[format_name].refuses:
                note(f"exporting {entry.label} …")
            artifact = export_one(candidate, self.folder / candidate.name / format_name, format_name)
        except UnsupportedError as error:
            return replace(entry, status="unsupported", error=str(error))
        except Exception as error:
            return replace(entry, status="failed", error=say(f"{entry.label} failed", error))
        return entry.exported(artifact, self.folder)


def _check_writable(folder: Path) -> None:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):  # nothing is made before training is over
            pass
    except OSError as error:
        raise ConfigError(
            f"output_dir: {str(folder)!r} cannot be written ({error.strerror}). Give ArtifactExport(output_dir=…) a "
            "folder that can be, or change its permissions."
        ) from error
