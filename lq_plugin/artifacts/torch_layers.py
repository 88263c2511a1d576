"""INT8 layers of torch with everything else of a module, for the user's own class to be put around again.

``model.safetensors`` holds the tensors: integers, scales and biases of INT8 layers as ``int8.<number>.<name>``, all
other parameters and buffers as ``float.<name>``. ``layers.json`` says where each layer goes, what it is, and which
names mean the same tensor. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from torch import Tensor, nn

from lq_plugin.coverage import Coverage
from lq_plugin.eager import swap
from lq_plugin.eager.layers import KINDS, put_together, quantized, taken_apart
from lq_plugin.errors import ArtifactError, ExportError

if TYPE_CHECKING:
    from lq_plugin.candidate import DynamicCandidate

TENSORS = "model.safetensors"
LAYERS = "layers.json"
_AS_TRAINED = "Give the class of the target, built as it was when it was trained."


def export(candidate: DynamicCandidate, folder: Path) -> Coverage:
    """Write ``model.safetensors`` and ``layers.json``."""
    found = swap.survey(candidate.module, candidate.example, candidate.scheme)
    described: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(found.chosen):
        made = quantized(layer.module, layer.kind, candidate.scheme.weight_granularity)
        options, parts = taken_apart(made, layer.kind)
        described.append({"path": layer.paths[0], "kind": layer.kind, "options": options})
        tensors |= {f"int8.{number}.{name}": tensor.contiguous() for name, tensor in parts.items()}
    rest, aliases = _rest(candidate.module, [layer.paths[0] for layer in found.chosen])
    tensors |= {f"float.{name}": tensor.contiguous() for name, tensor in rest.items()}
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
    module = factory()
    if not isinstance(module, nn.Module):
        raise ArtifactError(f"factory: it returned a {type(module).__name__}. It must return an nn.Module.")
    content = json.loads((folder / LAYERS).read_text())
    tensors = safetensors.torch.load_file(folder / TENSORS)
    made: dict[str, nn.Module] = {}
    for number, entry in enumerate(content["layers"]):
        _check(module, entry)
        made[entry["path"]] = put_together(entry["kind"], entry["options"], _below(f"int8.{number}.", tensors))
    rest = _below("float.", tensors)
    rest |= {alias: rest[name] for alias, name in content["aliases"].items()}
    around = swap.swapped(module, {path: nn.Identity() for path in made})
    try:
        around.load_state_dict(rest)
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise ArtifactError(
            f"factory: {type(module).__name__} has other parameters than were exported. {reason} {_AS_TRAINED}"
        ) from None
    return swap.swapped(around, made)


def _rest(module: nn.Module, chosen: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Everything but the chosen layers: tensors by name, and the further names of those that have several."""
    rest: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    aliases: dict[str, str] = {}
    state = swap.swapped(module, {path: nn.Identity() for path in chosen}).state_dict(keep_vars=True)
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ExportError(
                f"module: its state {name!r} is a {type(tensor).__name__}, which safetensors cannot hold."
            )
        if id(tensor) in names:
            aliases[name] = names[id(tensor)]
        else:
            names[id(tensor)], rest[name] = name, tensor.detach()
    return rest, aliases


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check(module: nn.Module, entry: Mapping[str, Any]) -> None:
    """Check that the layer that is replaced is one of the kind and size that was exported."""
    path, kind, options = entry["path"], entry["kind"], entry["options"]
    if kind not in KINDS or {name: type(value) for name, value in options.items()} != dict(KINDS[kind].options):
        raise ArtifactError(f"path: {LAYERS} describes no layer at {path!r} ({kind}, {options}). Export again.")
    name = path or "the module itself"
    try:
        layer = module.get_submodule(path)
    except AttributeError:
        raise ArtifactError(
            f"factory: {type(module).__name__} has no submodule {name!r}, where a {kind} was exported. {_AS_TRAINED}"
        ) from None
    given = {name: getattr(layer, name, None) for name in options}
    if not isinstance(layer, KINDS[kind].float_class) or given != options:
        raise ArtifactError(
            f"factory: {name!r} of {type(module).__name__} is {layer}, where a {kind} with {options} was exported. "
            f"{_AS_TRAINED}"
        )
