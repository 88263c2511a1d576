"""What is known of a target's calls: one of them as an example, and in which dimensions others differ from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lq_plugin.errors import LqError
from lq_plugin.graph import nesting
from lq_plugin.graph.capture import Call, Dims, private_call
from lq_plugin.graph.signature import describe
from lq_plugin.graph.structure import tensors_of

Sizes = Mapping[str, Sequence[int]]  # of tensors, by the input's name
_MOST = 1000  # inputs, or dimensions of one, that a checkpoint may name


@dataclass(frozen=True)
class Example:
    """One call of a target, copied to the CPU.

    Args:
        call: shares nothing with the caller.
        sizes: of its tensors, by the input's name; ``None`` where the call cannot be described.
        varying: dimensions whose size differed between the calls seen, the batch included, by the input's name.
    """

    call: Call
    sizes: Sizes | None
    varying: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(
        cls, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], dims: Dims | None = None
    ) -> Example:
        """Return a call as an example.

        Args:
            forward: of the target.
            args: positional arguments of the call.
            kwargs: its keyword arguments.
            dims: dimensions in which calls are known to differ. Those that its inputs do not have are left out: a
                checkpoint may be of another version.
        """
        sizes, given = _sizes(forward, args, kwargs), dims or {}
        known = {name: len(sizes[name]) for name in given if name in sizes} if sizes is not None else {}
        varying = {name: tuple(n for n in given[name] if n < count) for name, count in known.items()}
        return cls(private_call(args, kwargs), sizes, varying)

    def seeing(self, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Example:
        """Return this example, or a wider one if the inputs of a further call have other sizes.

        Args:
            forward: of the target.
            args: positional arguments of the call.
            kwargs: its keyword arguments. Calls of another structure, or that no graph can take, change nothing.
        """
        own, other = self.sizes, _sizes(forward, args, kwargs)
        if own is None or other is None or own == other:
            return self
        if {name: len(sizes) for name, sizes in own.items()} != {n: len(s) for n, s in other.items()}:
            return self
        found = {name: [dim for dim, size in enumerate(own[name]) if size != other[name][dim]] for name in own}
        wider = self.wider([found])
        # torch.export treats a size of 0 or 1 as a constant.
        if _smallest(own, wider.varying) < 2 <= _smallest(other, wider.varying):
            return Example(private_call(args, kwargs), other, wider.varying)
        return wider

    def wider(self, found: Sequence[Dims]) -> Example:
        """Return this example with more dimensions that differ; itself if there are none."""
        varying = {name: set(dims) for name, dims in self.varying.items()}
        for name, dims in ((name, dims) for each in found for name, dims in each.items() if dims):
            varying.setdefault(name, set()).update(dims)
        union = {name: tuple(sorted(dims)) for name, dims in varying.items()}
        return self if union == self.varying else replace(self, varying=union)


def varying_state(example: Example | None, target: str | None) -> dict[str, Any]:
    """Return what a checkpoint keeps of the dimensions that differed: builtins only."""
    dims = {} if example is None else {name: list(dims) for name, dims in example.varying.items()}
    return {"target": target, "dims": dims}


def varying_in(states: Iterable[Mapping[str, Any]], target: str | None) -> Mapping[str, tuple[int, ...]] | None:
    """Find in the states of a checkpoint's callbacks, which are untrusted, in which dimensions a target's calls differ.

    Returns:
        ``None`` where no state says it.
    """
    found: dict[str, set[int]] | None = None
    for state in states:
        kept = state.get("varying")
        if isinstance(kept, dict) and kept.get("target") == target and _are_dims(kept.get("dims")):
            found = found or {}
            for name, dims in kept["dims"].items():
                found.setdefault(name, set()).update(dims)
    return None if found is None else {name: tuple(sorted(dims)) for name, dims in found.items()}


def _are_dims(dims: Any) -> bool:
    return (
        isinstance(dims, dict)
        and len(dims) <= _MOST
        and all(isinstance(name, str) and isinstance(numbers, list) for name, numbers in dims.items())
        and all(len(numbers) <= _MOST and all(type(n) is int and n >= 0 for n in numbers) for numbers in dims.values())
    )


def placed_like(call: Call, other: Call) -> Call:
    """Return a call with its tensors on the devices of those of another call of the same structure."""
    devices = [tensor.device for tensor in nesting.tensors(other)]
    found = iter(devices)
    if len(devices) != sum(1 for _ in nesting.tensors(call)):
        return call
    placed: Call = nesting.mapped(lambda tensor: tensor.to(next(found)), call)
    return placed


def _sizes(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sizes | None:
    try:
        described = describe(forward, args, kwargs)
    except (LqError, TypeError):  # what this means is said where a graph is captured
        return None
    tensors = (found for parameter in described for found in tensors_of(parameter.given, parameter.name))
    return {name: given["shape"] for name, given in tensors}


def _smallest(sizes: Sizes, varying: Dims) -> int:
    return min((sizes[name][dim] for name, dims in varying.items() for dim in dims), default=2)
