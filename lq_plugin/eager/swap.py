"""Which layers of a module become INT8, why the others do not, and the module with INT8 layers in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lq_plugin import patterns
from lq_plugin.coverage import Coverage, FloatOp, QuantizedOp
from lq_plugin.eager import equivalents
from lq_plugin.eager.inherited import in_place_of, overrides, subclass
from lq_plugin.eager.layers import KINDS, quantized, unfit_call
from lq_plugin.errors import CaptureError, UnsupportedError
from lq_plugin.graph.capture import Call, private_call
from lq_plugin.graph.copying import detached_copy, module_names
from lq_plugin.graph.nesting import tensors
from lq_plugin.graph.padding import leave_fast_path
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.qparams import QuantSpec
from lq_plugin.scheme import Scheme

_ROUNDING = 1e-3  # of the largest value: far more than rounding makes, far less than a lost activation
_NO_FORM = "no dynamic INT8 form of this layer"
_KNOWN: Mapping[str, type[nn.Module]] = {**{name: kind.float_class for name, kind in KINDS.items()}, "rnn": nn.RNN}


@dataclass(frozen=True)
class Layer:
    """A layer that could become INT8.

    Args:
        paths: everywhere it is in the module; the root is ``""``.
        kind: what it is, a key of ``KINDS`` or ``"rnn"``.
        module: the layer itself.
        forms: layers that may compute the same with torch's forward, as ``equivalents.forms`` returns them.
    """

    paths: Sequence[str]
    kind: str
    module: nn.Module
    forms: Sequence[nn.Module]

    @property
    def plain(self) -> nn.Module:
        """The layer that computes the same with torch's forward."""
        return self.forms[0]

    @property
    def own_forward(self) -> bool:
        """Whether its forward is another one than torch's."""
        return overrides(self.module, _KNOWN[self.kind])

    @property
    def name(self) -> str:
        """What a layer that stays float is called: its kind, or its class where that is another one."""
        return self.kind if isinstance(self.module, _KNOWN[self.kind]) else type(self.module).__name__

    @property
    def within(self) -> set[str]:
        """Names of the modules that it is in, its own included."""
        parts = [path.split(".") for path in self.paths]
        return {".".join(names[: depth + 1]) for names in parts for depth in range(len(names))}


@dataclass(frozen=True)
class Survey:
    """The plan for a module's layers.

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
    refused = _refusals(layers, scheme)
    layers = _tried(module, example, layers, refused)
    refused = {id(layer.module): _unlike(layer) for layer in layers if not layer.forms} | refused
    for find in (_misuses, _inseparable):
        refused |= find(module, example, [layer for layer in layers if id(layer.module) not in refused])
    chosen = [layer for layer in layers if id(layer.module) not in refused]
    coverage = Coverage(
        tuple(QuantizedOp(_name(module, layer.paths[0]), layer.kind) for layer in chosen),
        _float_ops(module, layers, refused),
    )
    if not chosen:
        raise _nothing_to_quantize(coverage.float_ops)
    return Survey(chosen, coverage)


def check_layers(module: nn.Module, scheme: Scheme) -> None:
    """Check what can be known without a call: that patterns match, and that some layer may become INT8.

    Raises:
        ConfigError: a pattern matches nothing.
        UnsupportedError: nothing in the module can be quantized.
    """
    check_patterns(module, scheme)
    layers = _layers(module)
    refused = _refusals(layers, scheme)
    if len(refused) == len(layers) and not any(map(nn.parameter.is_lazy, module.parameters())):
        raise _nothing_to_quantize(_float_ops(module, layers, refused))


def check_patterns(module: nn.Module, scheme: Scheme) -> None:
    """Check that every pattern of a scheme matches something.

    Raises:
        ConfigError: a pattern that matches nothing, with the nearest names that would.
    """
    patterns.check_modules(scheme, module_names(module))
    patterns.check_types(scheme, {layer.kind for layer in _layers(module)}, _KNOWN)


def by_path(module: nn.Module, scheme: Scheme) -> Scheme:
    """Return the scheme with patterns of modules in place of those of kinds of layers: a graph has no layers."""
    layers = _layers(module)

    def paths(pattern: str) -> list[str]:
        found = [layer for layer in layers if patterns.is_type(pattern) and patterns.matches(pattern, layer.kind, ())]
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
        # A layer's copy is its replacement, so its float weights are not copied, and every reference to it follows:
        # paths that share it, and plain lists and dicts that torch does not look into.
        sharing.get_submodule(path).__dict__["__deepcopy__"] = lambda _, layer=layer: layer
    made = detached_copy(sharing)
    _leave_fast_paths(made, set(layers.values()))
    for parameter in made.parameters():
        if not nn.parameter.is_lazy(parameter):
            parameter.requires_grad_(False)
    return made


def int8(module: nn.Module, layers: Sequence[Layer], weights: QuantSpec) -> nn.Module:
    """Return a copy of a module with the INT8 forms of some layers in their places.

    Args:
        module: the float module; it is not changed.
        layers: those that become INT8, as :func:`survey` has chosen them.
        weights: which integers their weights become.
    """
    made = {x.paths[0]: in_place_of(x.module, quantized(x.plain, x.kind, weights), x.kind) for x in layers}
    return swapped(module, made)


def _leave_fast_paths(module: nn.Module, layers: Set[nn.Module]) -> None:
    """Disable transformers' fast paths, which read the float weights of layers that are replaced.

    They are taken only where these attributes, used for nothing else after construction, are set.
    """
    for part in module.modules():
        if layers.isdisjoint(part.modules()):
            continue
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0
        elif isinstance(part, nn.TransformerEncoder):
            leave_fast_path(part)


def _layers(module: nn.Module) -> list[Layer]:
    paths: dict[int, list[str]] = {}
    found: dict[int, tuple[str, nn.Module]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        kind = next((kind for kind, float_class in _KNOWN.items() if isinstance(part, float_class)), None)
        if kind is None and path and equivalents.holds_matrix(part):
            kind = "linear"  # perhaps: it is tried
        if kind is not None:
            paths.setdefault(id(part), []).append(path)
            found[id(part)] = kind, part
    return [Layer(tuple(paths[key]), kind, part, equivalents.forms(part, kind)) for key, (kind, part) in found.items()]


def _refusals(layers: Sequence[Layer], scheme: Scheme) -> dict[int, str]:
    """Why layers stay float, as far as the layers themselves show."""
    reasons = {id(x.module): patterns.exclusion(scheme, x.kind, x.within) or _refusal(x) for x in layers}
    return {key: reason for key, reason in reasons.items() if reason is not None}


def _refusal(layer: Layer) -> str | None:
    """Why a layer stays float whatever the scheme, as far as the layer itself shows."""
    part, kind = cast(Any, layer.module), layer.kind
    if kind == "rnn":
        return "torch has no INT8 kernel for nn.RNN"
    if getattr(part, "proj_size", 0):
        return "torch has no INT8 kernel for proj_size"
    if getattr(part, "mode", "") in ("mean", "max"):
        return f"torch's INT8 kernel sums where mode={part.mode!r}"
    if getattr(part, "max_norm", None) is not None:
        return "torch's INT8 kernel does not apply max_norm"
    if not layer.forms:
        return _unlike(layer)
    if any(map(nn.parameter.is_lazy, part.parameters())):
        return "its size is not known before its first call"
    if part._forward_hooks or part._forward_pre_hooks:
        return "has forward hooks, which an INT8 layer would not call"
    if any(tensor.dtype != torch.float32 for tensor in part.parameters()):
        return "its weights are not float32"
    if not all(tensor.isfinite().all() for tensor in part.parameters()):
        return "its weights hold nan or infinity"
    if kind == "embedding_bag" and part.padding_idx is not None and part.weight[part.padding_idx].any():
        return "torch's INT8 kernel does not leave out padding_idx"
    return None


def _tried(module: nn.Module, example: Call, layers: Sequence[Layer], refused: Mapping[int, str]) -> list[Layer]:
    """Run the example on a private copy, and keep of each layer's forms those that compute what it does there."""
    own = [x for x in layers if id(x.module) not in refused and x.plain is not x.module]
    if not own:
        return list(layers)
    probe = detached_copy(module)
    trials = {id(x.module): equivalents.Trial(probe.get_submodule(x.paths[0]), list(x.forms)) for x in own}
    run(probe, example)
    return [replace(x, forms=trials[id(x.module)].forms) if id(x.module) in trials else x for x in layers]


def _unlike(layer: Layer) -> str:
    """Why a layer stays float that computes something else than torch's layer of its kind."""
    if layer.name != layer.kind:
        return _NO_FORM
    part, base = type(layer.module), _KNOWN[layer.kind].__name__
    name = (part.__mro__[1] if parametrize.is_parametrized(layer.module) else part).__name__
    why = "computes something else" if layer.kind == "linear" else "holds more than its weights and plain values"
    return f"{name} overrides the forward of {base}, and {why}"


def _misuses(module: nn.Module, example: Call, layers: Sequence[Layer]) -> dict[int, str]:
    """Run the example on a private copy, and return why layers cannot be INT8 as they are used there."""
    probe = detached_copy(module)
    witnesses = {id(layer.module): _Witness(probe.get_submodule(layer.paths[0]), layer.kind) for layer in layers}
    run(probe, example)
    return {key: witness.reason for key, witness in witnesses.items() if witness.reason is not None}


def _inseparable(module: nn.Module, example: Call, layers: Sequence[Layer]) -> dict[int, str]:
    """Put INT8 layers that compute what the float ones do in their places; return why some cannot be replaced.

    A forward may ask for a layer's type, for attributes or for all parameters of the module. With such layers in the
    places of all others, its output must be the same.
    """
    expected = list(tensors(run(detached_copy(module), example)))
    stand_ins = {layer.paths[0]: _stand_in(layer) for layer in layers}
    if _change(module, example, stand_ins, expected) is None:
        return {}
    replaceable: dict[str, nn.Module] = {}
    refused: dict[int, str] = {}
    for layer, (path, made) in zip(layers, stand_ins.items(), strict=True):
        change = _change(module, example, replaceable | {path: made}, expected)
        if change is None:
            replaceable[path] = made
        else:
            refused[id(layer.module)] = change
    return refused


def _change(
    module: nn.Module, example: Call, stand_ins: Mapping[str, nn.Module], expected: Sequence[Tensor]
) -> str | None:
    """What a module does differently with stand-ins for layers; ``None`` where it does the same."""
    try:
        given = list(tensors(run(swapped(module, stand_ins), example)))
    except Exception as error:
        origin = error.__cause__ or error
        return f"the forward around it fails without the float layer ({type(origin).__name__}: {origin})"
    same = len(given) == len(expected) and all(map(_alike, given, expected))
    return None if same else "the forward around it computes something else without the float layer"


def _stand_in(layer: Layer) -> nn.Module:
    """An INT8 layer that computes what the float one does."""
    made = quantized(layer.plain, layer.kind, QuantSpec())
    made.forward = MethodType(_KNOWN[layer.kind].forward, layer.plain)
    return in_place_of(layer.module, made, layer.kind)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether tensors are the same except for rounding, which may depend on where the operands lie in memory."""
    if one.shape != other.shape or not other.is_floating_point() or not other.numel():
        return torch.equal(one, other)
    largest = other.nan_to_num(0, 0, 0).abs().max().item()
    return torch.allclose(one, other, rtol=0.0, atol=_ROUNDING * largest, equal_nan=True)


def run(module: nn.Module, example: Call) -> Any:
    """Return what a module makes of an example; what its forward changes in it stays changed.

    Raises:
        CaptureError: it fails with it.
    """
    args, kwargs = private_call(*example)
    with isolated():
        try:
            return module(*args, **kwargs)
        except Exception as error:
            raise CaptureError(
                f"batches: the forward of {type(module).__name__} fails with the first one ({type(error).__name__}: "
                f"{error}). Give inputs that it takes: a tensor, a tuple of arguments or a dict of keyword arguments."
            ) from error


class _Witness:
    """Sees how torch's forward of a layer is used; the layer is changed for that."""

    def __init__(self, layer: nn.Module, kind: str) -> None:
        self._called = self._inside = False
        self._misuse: str | None = None
        around = kind != "linear" and overrides(layer, _KNOWN[kind])
        layer_class, forward = type(layer), MethodType(_KNOWN[kind].forward, layer) if around else layer.forward

        def call(*args: Any, **kwargs: Any) -> Any:
            self._called = self._inside = True
            self._misuse = self._misuse or unfit_call(kind, args, kwargs)
            try:
                return forward(*args, **kwargs)
            finally:
                self._inside = False

        def read(part: nn.Module, name: str) -> Any:
            if not self._inside and name in part._parameters:
                self._misuse = f"its {name} is read outside its forward"
            return layer_class.__getattr__(part, name)

        if around:
            layer.__class__ = subclass(
                layer_class, _KNOWN[kind], lambda _, *args, **kwargs: call(*args, **kwargs), __getattr__=read
            )
        else:
            layer.__class__ = type(layer_class.__name__, (layer_class,), {"__getattr__": read})
            layer.forward = call

    @property
    def reason(self) -> str | None:
        """Why the INT8 form of the layer cannot be used like this; ``None`` where it can."""
        return self._misuse if self._called else "its forward is never called; its weight may be used directly"


def _float_ops(module: nn.Module, layers: Sequence[Layer], refused: Mapping[int, str]) -> tuple[FloatOp, ...]:
    """Layers that stay float, and other modules that hold parameters."""
    known = {id(layer.module) for layer in layers}
    left = [
        FloatOp(_name(module, x.paths[0]), x.name, refused[id(x.module)]) for x in layers if id(x.module) in refused
    ]
    others = [
        FloatOp(_name(module, path), type(part).__name__, _NO_FORM)
        for path, part in module.named_modules()
        if id(part) not in known and part._parameters and not isinstance(part, parametrize.ParametrizationList)
    ]
    return (*left, *others)


def _nothing_to_quantize(float_ops: Sequence[FloatOp]) -> UnsupportedError:
    found = "; ".join(f"{op.name}: {op.reason}" for op in float_ops[:5]) or "no layer with parameters"
    return UnsupportedError(
        "target: nothing in it can be quantized. Quantizable: linear and recurrent layers and, where asked, "
        f"embeddings. It has: {found}. Choose another target, or relax skip and only."
    )


def _name(module: nn.Module, path: str) -> str:
    return path or type(module).__name__
