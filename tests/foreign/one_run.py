"""Trains one model of one package, in the package's own environment, and writes what came out of it as JSON.

A script of a package holds ``REQUIREMENTS`` and ``MODELS``: a function for each model, which takes a list of callbacks
and a folder, trains as the package's users do, and returns the trained module. ``NO_DEPS`` are installed without what
they ask for, and ``TARGET`` is what users of the package have to give as ``target``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
from torch import nn

from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, StaticQuantization, find_results

SEED = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("script", type=Path)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plain", action="store_true", help="without the callbacks")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the packages
    package = _imported(options.script)
    callbacks = [] if options.plain else _ours(getattr(package, "TARGET", None))
    L.seed_everything(SEED)
    trained = package.MODELS[options.model](callbacks, options.folder)
    outcome: dict[str, Any] = {"weights": _digest(trained)}
    if not options.plain:
        outcome["manifests"] = [str(found.folder / "manifest.json") for found in find_results(options.folder)]
    (options.folder / "outcome.json").write_text(json.dumps(outcome))


def _ours(target: str | None) -> list[Any]:
    # Without latency: nothing here depends on it, and it takes longer than the training.
    return [
        StaticQuantization(target=target),
        DynamicQuantization(target=target),
        ArtifactExport(),
        Int8Evaluation(latency=None),
    ]


def _imported(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _digest(module: nn.Module) -> str:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
