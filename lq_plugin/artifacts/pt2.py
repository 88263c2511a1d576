"""The portable graph of ``torch.export``: runs wherever torch does, fast only under ``torch.compile``."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from lq_plugin.errors import ArtifactError
from lq_plugin.graph.capture import FloatGraph
from lq_plugin.noise import muted

FILE = "model.pt2"
_KEPT_META = ("val", "tensor_meta")  # the rest is stack traces: paths of the machine, and most of a small file


def program_of(graph: FloatGraph) -> ExportedProgram:
    """Export a converted graph again, with the dynamic dimensions of its signature and without traces of its origin."""
    shapes = tuple(
        {axis: Dim.AUTO for axis, size in enumerate(structure["shape"]) if size is None}
        for _, structure in graph.signature.tensors()
    )
    with muted(), torch.inference_mode(False), torch.no_grad():
        program = torch.export.export(graph.module, graph.example, dynamic_shapes=shapes, strict=False)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            node.meta = {key: value for key, value in node.meta.items() if key in _KEPT_META}
    program._example_inputs = None  # or the user's batch would be stored too
    return program


def export(graph: FloatGraph, folder: Path) -> None:
    """Write ``model.pt2``."""
    with muted():
        torch.export.save(program_of(graph), folder / FILE)


def load(folder: Path, threads: int | None) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """Load the graph after checking that nothing in the file would be unpickled."""
    module = load_module(folder)

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            return list(module(*tensors))

    return run


def load_module(folder: Path) -> torch.nn.Module:
    """Load the graph as a module over flat lists of tensors, fit for ``torch.compile``.

    Raises:
        ArtifactError: the file holds something that torch would unpickle.
    """
    import torch.ao.quantization.fx._decomposed  # noqa: F401  registers the quantize and dequantize operators

    _refuse_pickle(folder / FILE)
    with muted():
        return torch.export.load(folder / FILE).module(check_guards=False)


def _refuse_pickle(file: Path) -> None:
    """Check the archive's members: ``torch.export.load`` unpickles samples, old tensors and custom objects."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.split("/", 1)[-1]
            if name.endswith((".pt", ".pth", ".pkl")) and member.file_size:
                raise ArtifactError(f"path: {str(file)!r} holds {name!r}, which would be unpickled. It is refused.")
            if name.endswith("_config.json"):
                _refuse_pickled_config(file, name, json.loads(archive.read(member)))


def _refuse_pickled_config(file: Path, name: str, content: object) -> None:
    entries = content.get("config", {}) if isinstance(content, dict) else {}
    for key, entry in entries.items():
        if entry.get("use_pickle") or not str(entry.get("path_name", "")).startswith(("weight_", "tensor_")):
            raise ArtifactError(
                f"path: {str(file)!r} stores {key!r} ({name}) as a pickled or custom object. It is refused."
            )
