"""Artifacts of every candidate, and the manifest, when fit ends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

from lq_plugin.artifacts.base import DEFAULT_FORMATS, FORMATS, check_formats, formats_of
from lq_plugin.artifacts.layout import HUGGINGFACE, PLAIN, check_layout
from lq_plugin.artifacts.signing import private
from lq_plugin.callbacks.finishing import FinishingCallback, Origin
from lq_plugin.callbacks.quantizing import quantizing
from lq_plugin.errors import ConfigError
from lq_plugin.evaluation.placing import check_placement
from lq_plugin.hub import check_installed
from lq_plugin.options import check_type
from lq_plugin.plan import Finished, Plan
from lq_plugin.report.manifest import Manifest


class ArtifactExport(FinishingCallback):
    """Export every candidate when fit ends, to ``<folder of the run>/quantized/<candidate>/<format>``.

    A format that fails is listed in the manifest with its reason, and does not stop the others.

    Args:
        formats: any of ``"onnx"`` (for onnxruntime), ``"openvino"`` and ``"pt2"``. Dynamic candidates are exported as
            ``"torch"`` too. A format that a method does not support is listed in the manifest as unsupported.
        output_dir: folder of the run; the Trainer's ``log_dir``, else its ``default_root_dir``, by default.
        placement: ``"auto"``: where an artifact of a static candidate turns out to be no faster than FP32 on its own
            runtime, operators that cost more than they gain go back to float, if that is measured to be faster on this
            machine. It needs the latency that :class:`~lq_plugin.Int8Evaluation` measures, and takes no time where
            INT8 is faster. Decisions are kept, so that the same fit gives the same artifacts again. ``"runtime"``:
            artifacts are placed as the runtime wants it, which is the same on every machine.
        layout: ``"plain"``, or ``"huggingface"``: files have the names that optimum-onnx, optimum-intel and
            transformers.js look for, README.md begins with the metadata of a model card, and ``config.json`` is written
            where the target is a model of transformers or holds one. ``lq_plugin.load`` reads both layouts.
        sign: PEM file of a private key that every artifact is signed with, see :func:`~lq_plugin.sign`; then
            ``lq_plugin.load(path, verify=PUBLIC_KEY)`` shows that it is unchanged. Not signed by default.

    Attributes:
        folder: where artifacts and ``manifest.json`` are, known once fit has started.
        manifest: the content of ``manifest.json`` after fit.

    Raises:
        ConfigError: an unknown format, placement or layout, a key that cannot sign, or, before training, a folder
            that cannot be written.
        MissingExtraError: a format, the layout or the signature needs a package that is not installed.
    """

    def __init__(
        self,
        formats: Sequence[str] = DEFAULT_FORMATS,
        output_dir: str | None = None,
        placement: str = "auto",
        layout: str = PLAIN,
        sign: str | None = None,
    ) -> None:
        check_type("output_dir", output_dir, str, os.PathLike, NoneType)
        check_type("sign", sign, str, os.PathLike, NoneType)
        self.formats = check_formats(formats)
        self.output_dir = output_dir
        self.placement = check_placement(placement)
        self.layout = check_layout(layout)
        if layout == HUGGINGFACE:
            check_installed()
        self.sign = None if sign is None else os.path.abspath(sign)  # training may change the working folder
        if sign is not None:
            private(sign, "sign")  # or training would end before it is known that this is no key
        self.folder: Path | None = None
        self.manifest: Manifest | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that there is something to export and a folder to write to."""
        if stage != "fit":
            return
        self.manifest = None
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

    def ask(self, trainer: Any, origin: Origin, plan: Plan) -> Plan:
        """Ask for artifacts, and a manifest."""
        export = {
            "formats": list(self.formats),
            "output_dir": self.output_dir,
            "placement": self.placement,
            "layout": self.layout,
            "sign": self.sign is not None,  # manifests are handed over: where the private key lies is not in them
        }
        return replace(
            plan,
            folder=self.folder,
            formats=self.formats,
            placement=self.placement,
            layout=self.layout,
            sign=self.sign,
            config=replace(plan.config, export=export),
        )

    def receive(self, finished: Finished) -> None:
        """Take the manifest."""
        self.manifest = finished.manifest

    def _check_method(self, method: str) -> None:
        if all(method in FORMATS[name].refuses for name in formats_of(method, self.formats)):
            reasons = {name: FORMATS[name].refuses[method] for name in self.formats}
            raise ConfigError(
                f"formats: none of {list(self.formats)} can be made from a {method} candidate: {reasons}."
            )


def _check_writable(folder: Path) -> None:
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):  # nothing is made before training is over
            pass
    except OSError as error:
        raise ConfigError(
            f"output_dir: {str(folder)!r} cannot be written ({error.strerror}). Give ArtifactExport(output_dir=…) a "
            "writable folder, or change the permissions of this one."
        ) from error
