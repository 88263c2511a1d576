"""Layers of other classes that compute what ``nn.Linear`` does from a weight of their own.

Libraries have many: subclasses with a forward of their own, and layers with a weight of shape (inputs, outputs), such
as GPT-2's ``Conv1D``. A layer's code does not show what it computes, so it is tried on what it is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lq_plugin.eager.inherited import can_stay, overrides
from lq_plugin.eager.layers import KINDS

_ROUNDING = 1e-5  # of the largest output: sums of 3,072 products in another order differ by less than 1e-6
_FARTHER = 16.0  # how much larger than the input noise is, so that limits and bends that an example misses are seen


def forms(layer: nn.Module, kind: str) -> list[nn.Module]:
    """Return layers of a kind's own class, on the same weights, one of which may compute what a layer does.

    Args:
        layer: any layer.
        kind: what it may be: a key of ``KINDS`` or ``"rnn"``.

    Returns:
        The layer itself, if its forward is torch's, or can stay around torch's. For a linear layer with another
        forward, linear layers: with its weight as it is, and turned.
    """
    if kind not in KINDS or not overrides(layer, KINDS[kind].float_class):
        return [layer]
    if kind != "linear":
        return [layer] if isinstance(layer, KINDS[kind].float_class) and can_stay(layer, kind) else []
    others = tuple(other.float_class for name, other in KINDS.items() if name != kind)
    if isinstance(layer, others) or not holds_matrix(layer):
        return []
    weight: Tensor = layer.weight  # type: ignore[assignment]
    given = getattr(layer, "bias", None)
    bias = given if isinstance(given, Tensor) else None  # some keep there whether they have one
    return [_linear(each, bias) for each in (weight, weight.T) if bias is None or bias.shape == each.shape[:1]]


def holds_matrix(layer: nn.Module) -> bool:
    """Whether a layer has a matrix named ``weight``, perhaps a vector named ``bias``, and nothing else to learn."""
    if parametrize.is_parametrized(layer):
        return isinstance(layer, nn.Linear)
    held = {name: tensor for name, tensor in layer._parameters.items() if tensor is not None}
    if layer._modules or "weight" not in held or held.keys() - {"weight", "bias"}:
        return False
    if any(map(nn.parameter.is_lazy, held.values())):
        return False
    return held["weight"].dim() == 2 and ("bias" not in held or held["bias"].dim() == 1)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made.eval()


class Trial:
    """Compares a layer with its possible forms whenever it is called; the layer is changed for that.

    Args:
        layer: one whose forward is its own.
        forms: what it may compute, as :func:`forms` returns it. Those that differ from it are dropped.
    """

    def __init__(self, layer: nn.Module, forms: list[nn.Module]) -> None:
        self.forms = forms
        forward = layer.forward

        def tried(*args: Any, **kwargs: Any) -> Any:
            given = [each.clone() if isinstance(each, Tensor) else each for each in (*args, *kwargs.values())]
            result = forward(*args, **kwargs)
            self._compare(given, result)
            if self.forms:
                noise = _noise(given[0])
                try:
                    self._compare([noise.clone()], forward(noise))
                except Exception:  # whatever it asks of its input, a linear layer does not
                    self.forms = []
            return result

        layer.forward = tried

    def _compare(self, given: list[Any], result: Any) -> None:
        usual = len(given) == 1 and all(isinstance(each, Tensor) and each.numel() for each in (*given, result))
        self.forms = [form for form in self.forms if usual and _same(form, given[0], result)]


def _noise(x: Tensor) -> Tensor:
    """Numbers of both signs, farther from zero than any of ``x``; the random state is left alone."""
    largest = x.nan_to_num(0, 0, 0).abs().max().item() or 1.0
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * (largest * _FARTHER)


def _same(form: nn.Module, x: Tensor, result: Tensor) -> bool:
    if x.dtype != torch.float32 or not x.dim() or x.shape[-1] != form.in_features:
        return False
    expected: Tensor = form(x)
    if result.dtype != expected.dtype or result.shape != expected.shape:
        return False
    return torch.allclose(result, expected, rtol=0.0, atol=_ROUNDING * expected.abs().max().item())
