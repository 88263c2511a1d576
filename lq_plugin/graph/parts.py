"""Which submodules of a module can be captured, where the whole of it cannot."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lq_plugin.errors import CaptureError, LqError
from lq_plugin.graph import nesting, precision
from lq_plugin.graph.capture import Call, capture
from lq_plugin.graph.copying import detached_copy
from lq_plugin.graph.explaining import ANOTHER_TARGET, OF_DIMENSIONS
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.operators import CONVOLUTIONS, MATRIX_PRODUCTS, OPERATORS, RECURRENT
from lq_plugin.graph.signature import describe
from lq_plugin.graph.structure import Structure
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.noise import muted
from lq_plugin.targets import Forward, replaced_forward

logger = logging.getLogger(__name__)

ATTEMPTS = 12  # one costs 0.3 to 2 s
NAMED = 3  # parts in a message
SECONDS = 10.0  # after which no further part is looked for, once one is found
_MULTIPLYING = CONVOLUTIONS | MATRIX_PRODUCTS | RECURRENT
_NEVER_ALONE = (torch.jit.ScriptModule, nn.Embedding, nn.EmbeddingBag, nn.utils.parametrize.ParametrizationList)


@dataclass(frozen=True)
class Part:
    """A submodule that can be captured.

    Args:
        name: its dotted path.
        share: of the parameters of the module that it was looked for in.
        call: its first call, as it was made.
        graph: of this call.
        module: the copy of the submodule that it was captured from.
    """

    name: str
    share: float
    call: Call = field(repr=False, compare=False)
    graph: Graph = field(repr=False, compare=False)
    module: nn.Module = field(repr=False, compare=False)


def parts(target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Part]:
    """Yield the submodules that can be captured, those with most parameters first, and none that lies in another.

    A copy of the module is run once for their inputs. Left out are submodules that are called in different ways,
    because an artifact takes one, and those that multiply nothing. The same module and call give the same parts.

    Args:
        target: the module, which cannot be captured as a whole; it is not changed.
        args: positional arguments of one real call.
        kwargs: keyword arguments of that call.
    """
    try:
        with isolated(), muted():
            module = precision.float32_copy(detached_copy(target))  # a forward may change what it shares
            args, kwargs = nesting.mapped(lambda tensor: tensor.detach().clone(), (tuple(args), dict(kwargs)))
            calls = _calls(module, args, kwargs)
    except LqError:  # it cannot be copied
        return
    own = {name for name, _ in target.named_modules()}  # a copy has other names for what lies in a compiled module
    yield from _captured(module, {name: call for name, call in calls.items() if name in own})


def _captured(module: nn.Module, calls: Mapping[str, Call]) -> Iterator[Part]:
    sizes = {name: size(module.get_submodule(name)) for name in calls}
    total, found = max(size(module), 1), list[str]()
    names = iter(sorted(calls, key=lambda name: -sizes[name]))  # stable: a module stands before what is in it
    for _ in range(ATTEMPTS):
        name = next((each for each in names if not each.startswith(tuple(f"{one}." for one in found))), None)
        if name is None:
            return
        part = module.get_submodule(name)
        try:
            graph = capture(part, *calls[name])
        except Exception:  # whatever it is, this part is not one
            continue
        found.append(name)
        if _multiplies(graph):
            yield Part(name, sizes[name] / total, calls[name], graph, part)


def _calls(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Call]:
    """Run a module; return the first call of each submodule that has weights and was always called in the same way."""
    seen: dict[str, Call | None] = {}
    with ExitStack() as shadows:
        for name, part in module.named_modules():
            if name and not isinstance(part, _NEVER_ALONE) and any(p.dim() > 1 for p in _parameters(part)):
                shadows.enter_context(replaced_forward(part, _recorded(name, seen)))
        with suppress(Exception), warnings.catch_warnings():  # of the user's forward; the calls until then count
            warnings.simplefilter("ignore")  # they were shown when the module itself was called
            module(*args, **kwargs)
    return {name: call for name, call in seen.items() if call is not None}


def _recorded(name: str, seen: dict[str, Call | None]) -> Callable[..., Any]:
    forms: list[Any] = []

    def recorded(original: Forward, *args: Any, **kwargs: Any) -> Any:
        with suppress(Exception):  # what cannot be described cannot be captured either
            forms.append([(each.name, _form(each.given)) for each in describe(original, args, kwargs)])
            seen[name] = seen.get(name, (args, kwargs)) if forms[-1] == forms[0] else None
        return original(*args, **kwargs)

    return recorded


def _form(given: Structure) -> Any:
    """A structure without the sizes of its tensors, which may differ from call to call."""
    ((kind, content), *_) = given.items()
    if kind == "tensor":
        return given["dtype"], len(given["shape"])
    return kind, [(key, _form(item)) for key, item in content] if isinstance(content, list) else content


def _parameters(module: nn.Module) -> Iterator[Tensor]:
    return (parameter for parameter in module.parameters() if not nn.parameter.is_lazy(parameter))


def size(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in _parameters(module))


def _multiplies(graph: Graph) -> bool:
    found = (OPERATORS.get(node.target) for node in graph.module.graph.nodes)
    return any(operator.name in _MULTIPLYING for operator in found if operator is not None)


def named_parts(target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return the largest of :func:`parts`; a few of them, and fewer where that takes long."""
    start, found = time.monotonic(), list[Part]()
    for part in parts(target, args, kwargs):
        found.append(part)
        if len(found) == NAMED or time.monotonic() - start > SECONDS:
            break
    return tuple(found)


def naming(error: CaptureError, found: Sequence[Part], path: str | None = None) -> CaptureError:
    """Return an error of a capture that names what can be captured.

    Args:
        error: of the whole.
        found: its parts.
        path: of the whole in the user's model; ``None`` where it is the model.
    """
    if not found:
        return error
    names = [f"{path}.{part.name}" if path else part.name for part in found]
    shares = [f"target={name!r} ({part.share:.0%} of the parameters)" for name, part in zip(names, found, strict=True)]
    largest, text = f"largest parts that can be captured: {', '.join(shares)}", str(error)
    advised = text.replace(ANOTHER_TARGET, f"choose one of the {largest}")
    made = CaptureError(advised if ANOTHER_TARGET in text else f"{text} The {largest}.")
    made.__cause__ = error.__cause__
    return made


@contextmanager
def parts_named(
    target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], path: str | None = None
) -> Iterator[None]:
    """Let an error of a capture of ``target`` name its parts that can be captured; see :func:`naming`."""
    try:
        yield
    except CaptureError as error:
        raise naming(error, parts_of_failure(error, target, args, kwargs), path) from None


def parts_of_failure(
    error: Exception, target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Part, ...]:
    """Return the parts to name, where another target is a way out of an error."""
    if not isinstance(error, CaptureError) or str(error).startswith(OF_DIMENSIONS):
        return ()
    try:
        return named_parts(target, args, kwargs)
    except Exception:  # of the user's classes; this may be in the middle of a training
        logger.debug("the parts of a module could not be tried", exc_info=True)
        return ()
