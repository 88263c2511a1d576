"""INT8 layers of torch and everything else of a module, around which the user's own class is put again.

``model.safetensors`` holds the tensors: integers, scales and biases of INT8 layers as ``int8.<number>.<name>``, all
other parameters and buffers as ``float.<name>``, each tensor once. ``layers.json`` says where each layer goes, what it
is, and which names mean the same tensor. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lq_plugin.coverage import Coverage
from lq_plugin.eager import equivalents, swap
from lq_plugin.eager.inherited import in_place_of
from lq_plugin.eager.layers import KINDS, Tensors, flatten, misfits, quantized, unflatten
from lq_plugin.errors import ArtifactError, ExportError
from lq_plugin.graph.copying import detached_copy
from lq_plugin.untrusted import read_json

if TYPE_CHECKING:
    from lq_plugin.candidate import DynamicCandidate

TENSORS = "model.safetensors"
LAYERS = "layers.json"
_AS_TRAINED = "Give the class of the target, built as it was when it was trained."


def export(candidate: DynamicCandidate, folder: Path, threads: int | None = None) -> Coverage:
    """Write ``model.safetensors`` and ``layers.json``, which do not depend on the number of threads."""
    found = candidate.survey
    described: list[dict[str, Any]] = []
    tensors: Tensors = {}
    for number, layer in enumerate(found.chosen):
        made = quantized(layer.plain, layer.kind, candidate.scheme.weights)
        options, parts = flatten(made, layer.kind)
        described.append({"paths": list(layer.paths), "kind": layer.kind, "options": options})
        tensors |= {f"int8.{number}.{name}": tensor.contiguous() for name, tensor in parts.items()}
    rest, aliases = _rest(candidate.module, [path for layer in found.chosen for path in layer.paths])
    # Cloned, because tensors that are views of one another cannot be written.
    tensors |= {f"float.{name}": t.clone(memory_format=torch.contiguous_format) for name, t in rest.items()}
    safetensors.torch.save_file(tensors, folder / TENSORS)
    (folder / LAYERS).write_text(json.dumps({"layers": described, "aliases": aliases}, indent=1))
    return found.coverage


def rebuild(folder: Path, factory: Callable[[], nn.Module]) -> nn.Module:
    """Put the factory's module around the INT8 layers.

    Args:
        folder: where the two files are.
        factory: returns a float module of the structure that was exported; it is not changed.

    Raises:
        ArtifactError: the module has another structure, or the files describe no layers.
    """
    given = factory()
    if not isinstance(given, nn.Module):
        raise ArtifactError(f"factory: it returned a {type(given).__name__}. It must return an nn.Module.")
    module = detached_copy(given, share_tensors=True)  # under the names it was exported with: without torch.compile
    layers, aliases = _described(folder)
    tensors = safetensors.torch.load_file(folder / TENSORS)
    made: dict[str, nn.Module] = {}
    for number, entry in enumerate(layers):
        parts = _below(f"int8.{number}.", tensors)
        _check(module, entry, parts)
        kind, path = entry["kind"], entry["paths"][0]
        made[path] = in_place_of(module.get_submodule(path), unflatten(kind, entry["options"], parts), kind)
    _check_sharing(module, layers)
    around = swap.swapped(module, {path: nn.Identity() for path in made})
    _fill(around, _below("float.", tensors), aliases)
    return swap.swapped(around, made)


def _rest(module: nn.Module, chosen: Sequence[str]) -> tuple[Tensors, dict[str, str]]:
    """Everything but the chosen layers: tensors by name, and the further names of those that have several."""
    rest: Tensors = {}
    names: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if any(name.startswith(f"{path}." if path else "") for path in chosen):
            continue
        if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor):
            raise ExportError(
                f"module: its state {name!r} is a {type(tensor).__name__}, which safetensors cannot hold."
            )
        if id(tensor) in names:
            aliases[name] = names[id(tensor)]
        else:
            names[id(tensor)], rest[name] = name, tensor.detach()
    return rest, aliases


def _fill(module: nn.Module, rest: Tensors, aliases: Mapping[str, str]) -> None:
    """Load all tensors except those of INT8 layers."""
    loose = sorted(set(aliases.values()) - rest.keys())
    if loose:
        raise _malformed(f"it has aliases of {loose}, which are not in {TENSORS}")
    for name, first in _rest(module, [])[1].items():
        if aliases.get(name, name) != aliases.get(first, first):
            raise ArtifactError(
                f"factory: {first!r} and {name!r} of {type(module).__name__} are one tensor, but were two at "
                f"export. {_AS_TRAINED}"
            )
    kinds = {name: _kind(tensor) for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    cast = sorted(name for name, tensor in rest.items() if kinds.get(name, _kind(tensor)) != _kind(tensor))
    if cast:
        raise ArtifactError(
            f"factory: {cast[0]!r} of {type(module).__name__} holds another kind of numbers than the exported one. "
            f"{_AS_TRAINED}"
        )
    try:
        module.load_state_dict(rest | {alias: rest[name] for alias, name in aliases.items()})
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise ArtifactError(
            f"factory: {type(module).__name__} has other parameters than the exported one. {reason} {_AS_TRAINED}"
        ) from None


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """Kind of a tensor's numbers: within one, loading may change the precision, and nothing else."""
    return tensor.is_floating_point(), tensor.is_complex()


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _described(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Read what ``layers.json`` says, and check that it is of the form that is written."""
    try:
        content = read_json(folder / LAYERS)
        layers, aliases = content["layers"], content["aliases"]
        for entry in layers:
            kind, options, paths = entry["kind"], entry["options"], entry["paths"]
            types = {name: type(value) for name, value in options.items()}
            named = isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)
            if types != KINDS[kind].options or not named:
                raise _malformed(f"it describes no layer at {paths!r} ({kind}, {options})")
        if not all(isinstance(name, str) for name in aliases.values()):
            raise _malformed(f"its aliases are not names: {aliases!r}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _malformed(f"{type(error).__name__}: {error}") from None
    return layers, aliases


def _malformed(why: str) -> ArtifactError:
    return ArtifactError(f"path: {LAYERS} was changed after it was written ({why}). Export again.")


def _check(module: nn.Module, entry: Mapping[str, Any], tensors: Tensors) -> None:
    """Check that the layer that is replaced is one of the kind and size that was exported."""
    kind, options = entry["kind"], entry["options"]
    name = entry["paths"][0] or "the module itself"
    layer = _at(module, entry["paths"][0], kind)
    possible = [form for form in equivalents.forms(layer, kind) if isinstance(form, KINDS[kind].float_class)]
    fitting = [form for form in possible if {name: getattr(form, name, None) for name in options} == options]
    if not fitting:
        raise ArtifactError(
            f"factory: {name!r} of {type(module).__name__} is {_short(layer)}, but a {kind} with {options} was "
            f"exported. {_AS_TRAINED}"
        )
    wrong = misfits(fitting[0], kind, tensors)
    if wrong:
        raise ArtifactError(
            f"factory: {name!r} of {type(module).__name__} is {_short(layer)}, which does not fit the exported {kind}: "
            f"{wrong} are missing, unexpected or of another shape. {_AS_TRAINED}"
        )


def _short(layer: nn.Module) -> str:
    """Name a layer in one line, whatever is in it."""
    return " ".join(str(layer).split())[:200]


def _check_sharing(module: nn.Module, layers: Sequence[Mapping[str, Any]]) -> None:
    """Check that the same paths lead to the same layer as when they were exported."""
    found: dict[int, list[str]] = {}
    for entry in layers:
        for path in entry["paths"]:
            found.setdefault(id(_at(module, path, entry["kind"])), []).append(path)
    otherwise = [paths for paths in found.values() if paths not in [entry["paths"] for entry in layers]]
    if otherwise:
        raise ArtifactError(
            f"factory: {type(module).__name__} has one layer at each of {otherwise}, but the exported "
            f"module shared its layers differently. {_AS_TRAINED}"
        )


def _at(module: nn.Module, path: str, kind: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ArtifactError(
            f"factory: {type(module).__name__} has no submodule {path!r}, but a {kind} was exported. {_AS_TRAINED}"
        ) from None
