"""README.md and run.py in the folder of each artifact: what it is, how it was made, and how to run it.

They are no files of the runtime: no checksum covers them, no size counts them, and nothing reads them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lq_plugin.artifacts import description
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.artifacts.description import Artifact
from lq_plugin.artifacts.layout import renamed
from lq_plugin.durable import replace_file
from lq_plugin.graph.signature import Parameter, Signature
from lq_plugin.graph.structure import IN_ORDER, Structure, name_of, results_of
from lq_plugin.printing import counted
from lq_plugin.report import formats, markdown, repeating
from lq_plugin.report.manifest import Entry, Fp32, Manifest
from lq_plugin.report.page import TEMPLATES
from lq_plugin.selection import Budget

FILE = "README.md"
SCRIPT = "run.py"
_SIZE = 8  # of dynamic dimensions in examples, as in run.py
_PLACE = "    outputs: list[Any] = []  # lq_plugin puts the runtime's code here\n"


def write(folder: Path, entry: Entry, manifest: Manifest, front: str = "") -> None:
    """Write both files of an artifact, each in one step.

    Args:
        folder: the manifest's.
        entry: the artifact.
        manifest: with whatever is known; figures that were not measured are left out.
        front: what README.md begins with.

    Raises:
        OSError: one cannot be written.
        ArtifactError: the artifact is not there, or not as it was exported.
    """
    artifact = description.described(folder / (entry.path or entry.label))
    replace_file(artifact.path / FILE, front + render(artifact, entry, manifest))
    if FORMATS[artifact.format].code:
        replace_file(artifact.path / SCRIPT, script(artifact.format))


def script(format_name: str) -> str:
    """Return a program that runs an artifact of a format with nothing but numpy and its runtime.

    It reads names and shapes from ``artifact.json``, so no name of a user is part of the code.
    """
    chosen = FORMATS[format_name]
    template = (TEMPLATES / SCRIPT).read_text("utf-8")
    code = textwrap.indent(chosen.code, "    ")
    return template.replace(_PLACE, code).replace("SUFFIX", Path(chosen.files[0]).suffix)


def render(artifact: Artifact, entry: Entry, manifest: Manifest) -> str:
    """Return the text of README.md. Names are those of users and stand in code spans, where nothing is markup."""
    whose = "" if manifest.config.model == "model" else f" of {markdown.code(manifest.config.model)}"
    parts = [
        f"# {markdown.code(artifact.label)}",
        f"An INT8 model{whose} for {artifact.runtime}, made by {artifact.method} quantization with lq_plugin. "
        f"{counted(len(artifact.quantized_ops), 'operator')} in INT8, {len(artifact.float_ops)} in float: "
        f"{markdown.code(description.FILE)} lists them, with the reason for each that is float.",
        *_called(artifact.signature),
        *_measured(entry, manifest),
        *_running(artifact, entry, manifest),
        *_signed(manifest),
        "## How it was made",
        _table(("weights and calibration", ""), repeating.provenance(manifest).get(artifact.candidate, {}).items()),
        _table(("made with", ""), repeating.environment(manifest).items()),
    ]
    return "\n\n".join(parts) + "\n"


def _called(signature: Signature | None) -> Iterator[str]:
    yield "## Inputs and outputs"
    if signature is None:
        yield "It is called like the class that it is loaded into, and returns what that returns."
        return
    inputs = [("input", name, each) for name, each in signature.tensors()]
    outputs = [("output", name, each) for name, each in results_of(signature.output, "output")]
    rows = [(kind, name, each.get("dtype", "int64"), _shape(each)) for kind, name, each in (*inputs, *outputs)]
    yield _table(("", "name", "dtype", "shape"), rows)
    yield "A dimension `any` is dynamic: it may have any size that the model's operators allow."


def _shape(structure: Structure) -> str:
    sizes = ["any" if size is None else str(size) for size in structure.get("shape", ())]
    return " × ".join(sizes) or "a single number"


def _measured(entry: Entry, manifest: Manifest) -> Iterator[str]:
    """The figures beside those of FP32, where anything was measured."""
    fp32 = manifest.fp32_of(entry)
    rows = [
        (name, formats.metric(fp32.metrics.get(name)), formats.metric(value), formats.change(entry.delta.get(name)))
        for name, value in entry.metrics.items()
    ]
    if not rows and entry.median is None:
        return
    yield "## Metrics"
    yield "Measured on this artifact, reloaded from disk, on the machine named below."
    yield _table(("", "FP32", "this artifact", "difference"), [*rows, *_costs(entry, fp32)])
    yield from _judged(entry, manifest.budget)


def _costs(entry: Entry, fp32: Fp32) -> Iterator[tuple[str, ...]]:
    speedup = entry.speedup.vs_best_fp32 if entry.speedup else None
    size = entry.size_bytes / fp32.size_bytes if entry.size_bytes and fp32.size_bytes else None
    shown = (formats.size(fp32.size_bytes), formats.size(entry.size_bytes))
    yield ("size", *shown, formats.whole_percent(size))
    if entry.median is not None:
        fast = (formats.milliseconds(fp32.best), formats.milliseconds(entry.median), formats.times(speedup))
        yield ("milliseconds for a call, FP32 on its fastest runtime", *fast)
    if entry.sqnr_db is not None:
        yield ("SQNR of the outputs in dB", "", formats.decibels(entry.sqnr_db), "")


def _judged(entry: Entry, budget: Budget | None) -> Iterator[str]:
    if budget is not None and budget.metric is not None:
        of = " of FP32's value" if budget.relative else ""
        allowed = formats.drop(budget.max_drop, budget.relative)
        yield f"Budget: {markdown.code(budget.metric)} may get worse by {allowed}{of}. Status: `{entry.status}`."


def _running(artifact: Artifact, entry: Entry, manifest: Manifest) -> Iterator[str]:
    """Code that runs in the artifact's own folder."""
    loading = repeating.loading_from(".", entry, manifest)
    if artifact.signature is None:
        yield "## Run it"
        yield _block(loading)
        return
    yield "## Run it in this folder"
    yield "With lq_plugin, which checks the files before it loads them, and is called like the model was:"
    yield _block(f"import torch\n{loading}\noutput = model({_call(artifact.signature)})")
    yield f"With {artifact.runtime} alone, which checks nothing; inputs and outputs are in the order of the table:"
    arrays = ", ".join(_filled("np", each) for _, each in artifact.signature.tensors())
    imports, _, code = FORMATS[artifact.format].code.partition("\n\n")
    plain = FORMATS[artifact.format].files[0]
    file = plain if plain in artifact.files else renamed(plain)
    yield _block(f"import numpy as np\n{imports}\n\nfile = {file!r}\ninputs = [{arrays}]\n{code}")
    yield f"{markdown.code(f'python {SCRIPT} [INPUTS.npz] [--output OUTPUTS.npz]')} does the same, with inputs by name."


def _signed(manifest: Manifest) -> Iterator[str]:
    if manifest.config.export.get("sign"):
        yield "`lq_plugin.load('.', verify=PUBLIC_KEY)` refuses it if it is not as the owner of that key signed it."


def _call(signature: Signature) -> str:
    """Arguments of a call, without those that are given their defaults."""
    positional = any(parameter.kind == "VAR_POSITIONAL" for parameter in signature.parameters)
    return ", ".join(
        _argument(parameter, positional)
        for parameter in signature.parameters
        if positional or parameter.kind == "POSITIONAL_ONLY" or parameter.given != parameter.default
    )


def _argument(parameter: Parameter, positional: bool) -> str:
    value = _expression(parameter.given)
    named = parameter.kind == "KEYWORD_ONLY" or (parameter.kind == "POSITIONAL_OR_KEYWORD" and not positional)
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind, "")
    return f"{parameter.name}={value}" if named else f"{stars}{value}"


def _expression(structure: Structure) -> str:
    """Python that makes a value of a structure; a constant that is no plain one is shown as its name."""
    ((kind, content), *_) = structure.items()
    if kind == "tensor":
        return _filled("torch", structure)
    if kind == "constant":
        unwritable = isinstance(content, float) and not math.isfinite(content)
        return f"float({str(content)!r})" if unwritable else repr(content)
    if kind == "object":
        return repr(name_of(content))
    if kind in IN_ORDER:
        items = "".join(f"{_expression(item)}, " for _, item in content)
        return f"[{items.removesuffix(', ')}]" if kind == "list" else f"({items.rstrip()})"
    return "{" + ", ".join(f"{key!r}: {_expression(item)}" for key, item in content) + "}"


def _filled(library: str, structure: Structure) -> str:
    """An array of ones, or of ``False``: valid as indices of most tables, as lengths and as masks."""
    shape = tuple(_SIZE if size is None else size for size in structure["shape"])
    dtype = f"torch.{structure['dtype']}" if library == "torch" else repr(structure["dtype"])
    return f"{library}.{'zeros' if structure['dtype'] == 'bool' else 'ones'}({shape}, dtype={dtype})"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    return markdown.table(dict.fromkeys(head, "left"), rows, markdown.code)


def _block(code: str) -> str:
    return f"```python\n{code.rstrip()}\n```"
