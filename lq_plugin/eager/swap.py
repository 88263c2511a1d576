"""Which layers of a module become INT8, why the others do not, and the module with INT8 layers in their places."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lq_plugin.coverage import Coverage, FloatOp, QuantizedOp
from lq_plugin.eager.layers import KINDS
from lq_plugin.errors import ConfigError, UnsupportedError, unknown_name
from lq_plugin.graph.capture import Call, isolated
from lq_plugin.graph.copying import detached_copy
from lq_plugin.scheme import Scheme

_KNOWN: Mapping[str, type[nn.Module]] = {**{name: kind.float_class for name, kind in KINDS.items()}, "rnn": nn.RNN}


@dataclass(frozen=True)
class Layer:
    """A layer that could become INT8.

    Args:
        paths: everywhere it is in the module; the root is ``""``.
        kind: what it is, a key of ``KINDS`` or ``"rnn"``.
        module: the layer itself.
    """

    paths: Sequence[str]
    kind: str
    module: nn.Module


@dataclass(frozen=True)
class Survey:
    """What is to be done with a module's layers.

    Args:
        chosen: the layers that become INT8.
        coverage: the same for the manifest, with what stays float and why.
    """

    chosen: Sequence[Layer]
    coverage: Coverage


def survey(module: nn.Module, example: Call, scheme: Scheme) -> Survey:
    """Decide which layers of a module become INT8.

    Args:
        module: in eval mode, on the CPU; left as it is.
        example: a real call, to see which layers are called at all.
        scheme: what is skipped.

    Raises:
        ConfigError: a pattern matches nothing.
        UnsupportedError: nothing in the module can be quantized.
    """
    check_patterns(module, scheme)
    layers = _layers(module)
    refused = {id(layer.module): reason for layer in layers if (reason := _refusal(layer, scheme)) is not None}
    called = _called(module, example, [layer for layer in layers if id(layer.module) not in refused])
    for layer in layers:
        if id(layer.module) not in called:
            refused.setdefault(id(layer.module), "its forward is never called; its weight may be used directly")
    chosen = [layer for layer in layers if id(layer.module) not in refused]
    coverage = Coverage(
        tuple(QuantizedOp(_name(module, layer.paths[0]), layer.kind) for layer in chosen),
        (
            *(FloatOp(_name(module, x.paths[0]), x.kind, refused[id(x.module)]) for x in layers if x not in chosen),
            *_others(module, {id(layer.module) for layer in layers}),
        ),
    )
    if not chosen:
        found = "; ".join(f"{op.name}: {op.reason}" for op in coverage.float_ops[:5]) or "no layer with parameters"
        raise UnsupportedError(
            "target: nothing in it can be quantized. Quantizable are linear and recurrent layers and, where asked, "
            f"embeddings. It has: {found}. Choose another target, or relax skip and only."
        )
    return Survey(chosen, coverage)


def check_patterns(module: nn.Module, scheme: Scheme) -> None:
    """Check that every pattern of a scheme matches something.

    Raises:
        ConfigError: a pattern that matches nothing, with the nearest names that would.
    """
    names = [name for name, _ in module.named_modules() if name]
    kinds = sorted({layer.kind for layer in _layers(module)})
    for argument in ("skip", "only"):
        for pattern in getattr(scheme, argument):
            if not pattern.startswith("op:"):
                if not fnmatch.filter(names, pattern):
                    raise unknown_name(argument, pattern, names)
            elif pattern[3:] not in _KNOWN:
                raise unknown_name(argument, pattern, (f"op:{kind}" for kind in _KNOWN))
            elif pattern[3:] not in kinds:
                raise ConfigError(
                    f"{argument}: {pattern!r} matches no layer of this model. It has: "
                    f"{', '.join(f'op:{kind}' for kind in kinds) or 'no such layer'}."
                )


def by_path(module: nn.Module, scheme: Scheme) -> Scheme:
    """Return the scheme with patterns of modules in place of those of kinds of layers, for a graph has no layers."""
    layers = _layers(module)

    def paths(pattern: str) -> list[str]:
        found = [layer for layer in layers if pattern.startswith("op:") and _matches(pattern, layer)]
        return [path for layer in found for path in layer.paths] or [pattern]

    return replace(
        scheme,
        skip=[path for pattern in scheme.skip for path in paths(pattern)],
        only=[path for pattern in scheme.only for path in paths(pattern)],
    )


def swapped(module: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of a module with other layers in place of some.

    Args:
        module: the float module; it is not changed.
        layers: what replaces a layer, by one of its paths. A layer that is shared stays shared.
    """
    made = detached_copy(module)
    for path, layer in layers.items():
        old = made.get_submodule(path)
        if old is made:
            return layer
        for place in [name for name, part in made.named_modules(remove_duplicate=False) if part is old]:
            parent, _, name = place.rpartition(".")
            setattr(made.get_submodule(parent), name, layer)
    for part in made.modules():
        # Fast paths that read float weights are taken only where these attributes, used for nothing else, are set.
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0
        elif isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False
    return made.eval().requires_grad_(False)


def _layers(module: nn.Module) -> list[Layer]:
    paths: dict[int, list[str]] = {}
    found: dict[int, tuple[str, nn.Module]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        kind = next((kind for kind, float_class in _KNOWN.items() if isinstance(part, float_class)), None)
        if kind is not None:
            paths.setdefault(id(part), []).append(path)
            found[id(part)] = kind, part
    return [Layer(tuple(paths[key]), kind, part) for key, (kind, part) in found.items()]


def _refusal(layer: Layer, scheme: Scheme) -> str | None:
    """Why a layer stays float, as far as it tells itself."""
    part, kind = layer.module, layer.kind
    matching = next((pattern for pattern in scheme.skip if _matches(pattern, layer)), None)
    if matching is not None:
        return f"skipped by {matching!r}"
    if scheme.only and not any(_matches(pattern, layer) for pattern in scheme.only):
        return "not named by only"
    if kind.startswith("embedding") and not scheme.embeddings:
        return "embeddings=False"
    return _structural_refusal(part, kind)


def _structural_refusal(part: nn.Module, kind: str) -> str | None:
    if kind == "rnn":
        return "torch has no INT8 kernel for nn.RNN"
    if getattr(part, "proj_size", 0):
        return "torch has no INT8 kernel for proj_size"
    if getattr(part, "mode", "") in ("mean", "max"):
        return f"torch's INT8 kernel sums where mode={part.mode!r}"
    base: Any = type(part).__mro__[1] if parametrize.is_parametrized(part) else type(part)
    if base.forward is not _KNOWN[kind].forward or "forward" in part.__dict__:
        return f"{base.__name__} overrides the forward of {_KNOWN[kind].__name__}"
    if part._forward_hooks or part._forward_pre_hooks:
        return "has forward hooks, which an INT8 layer would not call"
    if any(nn.parameter.is_lazy(tensor) or tensor.dtype != torch.float32 for tensor in part.parameters()):
        return "its weights are not float32"
    return None


def _matches(pattern: str, layer: Layer) -> bool:
    if pattern.startswith("op:"):
        return layer.kind == pattern[3:]
    parts = [path.split(".") for path in layer.paths]
    prefixes = {".".join(names[: depth + 1]) for names in parts for depth in range(len(names))}
    return bool(fnmatch.filter(prefixes, pattern))


def _called(module: nn.Module, example: Call, layers: Sequence[Layer]) -> set[int]:
    """Run the example, and return which layers' forward was called."""
    seen: set[int] = set()
    args, kwargs = example
    with isolated(), _watched(layers, seen):
        module(*args, **kwargs)
    return seen


@contextmanager
def _watched(layers: Sequence[Layer], seen: set[int]) -> Iterator[None]:
    def watch(part: nn.Module) -> Callable[..., Any]:
        forward = part.forward

        def watching(*args: Any, **kwargs: Any) -> Any:
            seen.add(id(part))
            return forward(*args, **kwargs)

        return watching

    for layer in layers:
        layer.module.__dict__["forward"] = watch(layer.module)
    try:
        yield
    finally:
        for layer in layers:
            del layer.module.__dict__["forward"]


def _others(module: nn.Module, known: set[int]) -> list[FloatOp]:
    """Other modules that hold parameters."""
    return [
        FloatOp(_name(module, path), type(part).__name__, "no dynamic INT8 form of this layer")
        for path, part in module.named_modules()
        if id(part) not in known and part._parameters and not isinstance(part, parametrize.ParametrizationList)
    ]


def _name(module: nn.Module, path: str) -> str:
    return path or type(module).__name__
