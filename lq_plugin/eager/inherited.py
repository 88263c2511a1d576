"""A subclass's own forward around an INT8 layer, which is what it inherits.

Libraries subclass recurrent layers to treat lengths of zero, masks or states, and call ``super().forward`` between. A
class below theirs and above torch's answers that call, so all of their code stays as it is.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from lq_plugin.eager.layers import KINDS, PLAIN, resembling


def overrides(layer: nn.Module, float_class: type[nn.Module]) -> bool:
    """Whether the forward of a layer is another one than torch's."""
    return getattr(layer.forward, "__func__", None) is not float_class.forward


def can_stay(layer: nn.Module, kind: str) -> bool:
    """Whether a subclass can be put around an INT8 layer: it holds the weights of its kind and plain values alone.

    Args:
        layer: of a subclass of the kind's class that overrides its forward.
        kind: a key of ``KINDS``.
    """
    if parametrize.is_parametrized(layer) or "forward" in vars(layer) or layer._modules or layer._buffers:
        return False
    usual = KINDS[kind].float_class(1, 1, device="meta")
    weights = getattr(layer, "_flat_weights_names", usual._parameters.keys())
    more = [value for name, value in vars(layer).items() if name not in vars(usual)]
    return layer._parameters.keys() <= set(weights) and all(isinstance(value, PLAIN) for value in more)


def in_place_of(layer: nn.Module, made: nn.Module, kind: str) -> nn.Module:
    """Return what takes a float layer's place: its INT8 form, within the layer's own forward if that calls it.

    Args:
        layer: the float layer; it is not changed.
        made: its INT8 form.
        kind: a key of ``KINDS``.
    """
    float_class = KINDS[kind].float_class
    resembling(made, layer)
    if kind == "linear" or not overrides(layer, float_class):  # a linear layer's own forward is not kept
        return made
    around = object.__new__(subclass(type(layer), float_class, _call))
    held: dict[str, Any] = {"_parameters": {}, "_modules": {"inherited": made}}
    if isinstance(layer, nn.RNNBase):  # its lists of parameters
        held |= dict.fromkeys(("_flat_weights", "_flat_weight_refs"), [None] * len(layer._flat_weights_names))
    vars(around).update(vars(layer) | held)
    return around.eval()


def subclass(
    layer_class: type[nn.Module], float_class: type[nn.Module], forward: Callable[..., Any], **methods: Any
) -> type[nn.Module]:
    """Return a subclass that inherits another forward than torch's.

    Args:
        layer_class: a subclass of ``float_class`` with a forward of its own.
        float_class: torch's class.
        forward: what ``super().forward`` calls in the own forward.
        methods: further ones.
    """
    inherited = type(float_class.__name__, (float_class,), {"forward": forward})
    return types.new_class(layer_class.__name__, (layer_class, inherited), exec_body=lambda body: body.update(methods))


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.inherited(*args, **kwargs)
