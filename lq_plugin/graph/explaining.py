"""Why a forward cannot be captured, in its author's words: the line of code, the names of inputs, and what to do."""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

# What torch.export says of the inputs of a graph over flat tensors.
_INPUT = re.compile(r"(?:L|inputs)\['tensors'\]\[(\d+)\](\.size\(\)|\.shape)?|\b(?:tensors|args)_(\d+)\b")
_SYMBOL = re.compile(r"\bs\d+\b")
_FIXED = re.compile(r"You marked (\S+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_TOO_SMALL = re.compile(r"0/1 specialized due to hint of (\d) for dimension (\S+\])")
# parts.py puts the names of what can be captured in its place.
ANOTHER_TARGET = "choose another target (target='encoder' captures only that submodule)"
_ADVICE = (
    f"What you can do: {ANOTHER_TARGET}, {{}}, or use the format 'torch' of dynamic quantization, which needs no graph."
)
OF_DIMENSIONS = "dynamic_dims: "  # how messages begin where no other target is a way out
_STANDARD_LIBRARY = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib")})
_REWRITE = "rewrite this line without control flow that depends on the values of tensors"
_UNSCRIPT = "replace it by the module that it was scripted from, and script that after training"


def explanation(target: nn.Module, error: Exception, names: Sequence[str]) -> str:
    """Say why torch.export failed.

    Args:
        target: whose forward it is.
        error: what torch.export raised.
        names: of the inputs, in the graph's order, as ``dynamic_dims`` takes them.
    """
    text = _translated(str(error), error, names)
    if fixed := _FIXED.findall(text):
        said = ", ".join(f"{place} to {size}" for place, size in fixed)
        return (
            f"{OF_DIMENSIONS}the forward of {type(target).__name__} fixes {said}. Leave it out of dynamic_dims; or, "
            "where another input must have the same size, make that dimension dynamic too."
        )
    if small := _TOO_SMALL.search(text):
        return (
            f"{OF_DIMENSIONS}{small[2]} is {small[1]} in the first batch, which torch.export treats as a constant. "
            "Give a first batch in which it is 2 or more."
        )
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    scripted = _scripted_parts(target)
    held = f"  It holds {scripted[0]!r}, a TorchScript module, whose weights no graph can hold.\n" if scripted else ""
    return (
        f"target: the forward of {type(target).__name__} cannot be captured by torch.export.\n"
        f"  {_user_line(error)}\n  {type(error).__name__}: {reason}\n{held}"
        + _ADVICE.format(_UNSCRIPT if scripted else _REWRITE)
    )


def _scripted_parts(module: nn.Module) -> list[str]:
    """Names of the TorchScript modules in a module; the outermost one comes first."""
    return [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]


def _translated(text: str, error: Exception, names: Sequence[str]) -> str:
    """Replace torch.export's names of inputs and sizes by ``x`` and ``x.shape[1]``."""

    def name(found: re.Match[str]) -> str:
        number = int(found[1] or found[3])
        return names[number] + (".shape" if found[2] else "") if number < len(names) else found[0]

    sizes = dict(_sizes(error)) if _SYMBOL.search(text) else {}
    return _INPUT.sub(name, _SYMBOL.sub(lambda found: sizes.get(found[0], found[0]), text))


def _sizes(error: Exception) -> Iterator[tuple[str, str]]:
    """Yield the symbols of sizes with what torch.export calls these; a frame of the traceback knows them."""
    frame = error.__traceback__
    while frame is not None:
        for value in list(frame.tb_frame.f_locals.values()):
            if isinstance(value, FakeTensorMode) and value.shape_env is not None:
                for symbol, sources in value.shape_env.var_to_sources.items():
                    called: Any = sources[0].name if sources else str(symbol)
                    yield str(symbol), called() if callable(called) else called
        frame = frame.tb_next


def _user_line(error: BaseException) -> str:
    """The innermost frame of the traceback that lies in the user's code or in a package other than torch.

    What the standard library does, such as ``copy.deepcopy``, fails where it is called.
    """
    here = str(Path(__file__).resolve().parents[1])
    frame, found = error.__traceback__, "(no line of the model's own code is in the traceback)"
    while frame is not None:
        path = frame.tb_frame.f_code.co_filename
        if not _is_foreign(path, here):
            source = linecache.getline(path, frame.tb_lineno).strip()
            found = f"{path}:{frame.tb_lineno}: {source}"
        frame = frame.tb_next
    return found


def _is_foreign(path: str, here: str) -> bool:
    installed = "site-packages" in path or "dist-packages" in path  # which lie inside the standard library's folder
    return (
        path.startswith((here, "<"))
        or f"{Path('site-packages') / 'torch'}{os.sep}" in path
        or (path.startswith(_STANDARD_LIBRARY) and not installed)
    )
