"""Which layers of a module become INT8, why the others do not, and the module with INT8 layers in their places."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lq_plugin.coverage import Coverage, FloatOp, QuantizedOp
from lq_plugin.eager.layers import KINDS, unfit_call
from lq_plugin.errors import ConfigError, UnsupportedError, unknown_name
from lq_plugin.graph.capture import Call, isolated, private_call
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
        module: on the CPU, as :func:`~lq_plugin.graph.copying.detached_copy` returns it; left as it is.
        example: a real call, to see how layers are used.
        scheme: what is skipped.

    Raises:
        ConfigError: a pattern matches nothing.
        UnsupportedError: nothing in the module can be quantized.
    """
    check_patterns(module, scheme)
    layers = _layers(module)
    refused = {id(layer.module): reason for layer in layers if (reason := _refusal(layer, scheme)) is not None}
    refused |= _misuses(module, example, [layer for layer in layers if id(layer.module) not in refused])
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
    sharing = detached_copy(module, share_tensors=True)
    for path, layer in layers.items():
        # A layer says itself what its copy is. So its float weights are not copied, and every reference to it follows:
        # paths that share it, and plain lists and dicts that torch does not look into.
        sharing.get_submodule(path).__dict__["__deepcopy__"] = lambda _, layer=layer: layer
    made = detached_copy(sharing)
    _leave_fast_paths(made, set(layers.values()))
    return made.requires_grad_(False)


def _leave_fast_paths(module: nn.Module, layers: Set[nn.Module]) -> None:
    """Keep transformers from their fast paths, which read the float weights of layers that are replaced.

    They are taken only where these attributes, used for nothing else after construction, are set.
    """
    for part in module.modules():
        if layers.isdisjoint(part.modules()):
            continue
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0
        elif isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False


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


def _structural_refusal(part: Any, kind: str) -> str | None:
    if kind == "rnn":
        return "torch has no INT8 kernel for nn.RNN"
    if getattr(part, "proj_size", 0):
        return "torch has no INT8 kernel for proj_size"
    if getattr(part, "mode", "") in ("mean", "max"):
        return f"torch's INT8 kernel sums where mode={part.mode!r}"
    if getattr(part, "max_norm", None) is not None:
        return "torch's INT8 kernel does not apply max_norm"
    base = type(part).__mro__[1] if parametrize.is_parametrized(part) else type(part)
    if getattr(part.forward, "__func__", None) is not _KNOWN[kind].forward:
        return f"{base.__name__} overrides the forward of {_KNOWN[kind].__name__}"
    if any(map(nn.parameter.is_lazy, part.parameters())):
        return "its size is not known before its first call"
    if part._forward_hooks or part._forward_pre_hooks:
        return "has forward hooks, which an INT8 layer would not call"
    if any(tensor.dtype != torch.float32 for tensor in part.parameters()):
        return "its weights are not float32"
    if kind == "embedding_bag" and part.padding_idx is not None and part.weight[part.padding_idx].any():
        return "torch's INT8 kernel does not leave out padding_idx"
    return None


def _matches(pattern: str, layer: Layer) -> bool:
    if pattern.startswith("op:"):
        return layer.kind == pattern[3:]
    parts = [path.split(".") for path in layer.paths]
    prefixes = {".".join(names[: depth + 1]) for names in parts for depth in range(len(names))}
    return bool(fnmatch.filter(prefixes, pattern))


def _misuses(module: nn.Module, example: Call, layers: Sequence[Layer]) -> dict[int, str]:
    """Run the example on a private copy, and return why layers cannot be INT8 as they are used there."""
    probe = detached_copy(module)
    witnesses = {id(layer.module): _Witness(probe.get_submodule(layer.paths[0]), layer.kind) for layer in layers}
    args, kwargs = private_call(*example)
    with isolated():
        probe(*args, **kwargs)
    return {key: witness.reason for key, witness in witnesses.items() if witness.reason is not None}


class _Witness:
    """Sees how a layer is used; the layer is changed for that."""

    def __init__(self, layer: nn.Module, kind: str) -> None:
        self._called = self._inside = False
        self._misuse: str | None = None
        layer_class, forward = type(layer), layer.forward

        def call(*args: Any, **kwargs: Any) -> Any:
            self._called = self._inside = True
            self._misuse = self._misuse or unfit_call(kind, args, kwargs)
            try:
                return forward(*args, **kwargs)
            finally:
                self._inside = False

        def read(part: nn.Module, name: str) -> Any:
            if not self._inside and name in part._parameters:
                self._misuse = f"its {name} is read outside of its forward"
            return layer_class.__getattr__(part, name)

        layer.__class__ = type(layer_class.__name__, (layer_class,), {"__getattr__": read})
        layer.forward = call

    @property
    def reason(self) -> str | None:
        """Why the INT8 form of the layer cannot be used like this; ``None`` where it can."""
        return self._misuse if self._called else "its forward is never called; its weight may be used directly"


def _others(module: nn.Module, known: set[int]) -> list[FloatOp]:
    """Other modules that hold parameters."""
    return [
        FloatOp(_name(module, path), type(part).__name__, "no dynamic INT8 form of this layer")
        for path, part in module.named_modules()
        if id(part) not in known and part._parameters and not isinstance(part, parametrize.ParametrizationList)
    ]


def _name(module: nn.Module, path: str) -> str:
    return path or type(module).__name__
