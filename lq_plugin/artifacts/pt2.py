"""The portable graph of ``torch.export``: runs wherever torch does, fast only under ``torch.compile``."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from lq_plugin.errors import ArtifactError
from lq_plugin.graph.capture import FloatGraph
from lq_plugin.noise import muted

FILE = "model.pt2"
_KEPT_META = ("val", "tensor_meta")  # the rest is stack traces: paths of the machine, and most of a small file

_MEMBERS = re.compile(
    r"archive_(format|version)|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/(weights/(model_weights_config\.json|weight_\d+)|constants/(model_constants_config\.json|tensor_\d+))"
    r"|data/sample_inputs/model\.pt"
)
_ALLOWED = {  # by the key in a serialized graph
    "expr_str": re.compile(
        r"([A-Z][A-Za-z]*(?=\()|[a-z]+=(True|False)|True|False|'[a-z]+\d+'|\d+(\.\d+)?|[-+*/(),<>= ])*"
    ),
    "target": re.compile(
        r"torch\.ops\.(aten|quantized_decomposed|lq_plugin)\.\w+\.\w+|torch\.ops\.higher_order\.\w+"
        r"|_operator\.\w+|math\.\w+|torch\.sym_\w+"
    ),
}


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
        ArtifactError: the file holds something that torch would unpickle or run.
    """
    import torch.ao.quantization.fx._decomposed  # registers the quantize and dequantize operators

    _refuse_code(folder / FILE)
    with muted():
        return torch.export.load(folder / FILE).module(check_guards=False)


def _refuse_code(file: Path) -> None:
    """Check that an archive holds nothing but tensors and a graph of known operators.

    ``torch.export.load`` unpickles samples, old tensors and custom objects, loads native libraries, finds members
    whatever their case, and evaluates the expressions of dynamic dimensions. So what is allowed is listed.
    """
    seen: set[str] = set()
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.split("/", 1)[-1]
            if not _MEMBERS.fullmatch(name) or name in seen or (name.endswith(".pt") and member.file_size):
                raise _refused(file, f"holds the member {name!r}")
            seen.add(name)
            if name.endswith("_config.json"):
                _refuse_pickled_tensors(file, name, json.loads(archive.read(member)))
            elif name.endswith(".json"):
                _refuse_expressions(file, json.loads(archive.read(member)))


def _refuse_pickled_tensors(file: Path, name: str, content: Any) -> None:
    for key, entry in content["config"].items():
        if entry["use_pickle"] or not str(entry["path_name"]).startswith(("weight_", "tensor_")):
            raise _refused(file, f"stores {key!r} ({name}) as a pickled or custom object")


def _refuse_expressions(file: Path, content: Any) -> None:
    """Check every expression and every operator in the nested lists and dicts of a serialized graph."""
    if isinstance(content, list):
        for item in content:
            _refuse_expressions(file, item)
    elif isinstance(content, dict):
        for key, item in content.items():
            if key in _ALLOWED and isinstance(item, str) and not _ALLOWED[key].fullmatch(item):
                raise _refused(file, f"has {item!r} as {key}")
            _refuse_expressions(file, item)


def _refused(file: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"path: {str(file)!r} {what}, which could run code. It is refused: ArtifactExport never writes this. Export "
        "again from a source that you trust."
    )
