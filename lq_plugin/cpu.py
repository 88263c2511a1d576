"""What the CPU of this machine can do for INT8."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from pathlib import Path

_INT8_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
_VNNI = frozenset(("avx_vnni", "avx512_vnni", "amx_int8"))
_X86 = ("x86_64", "AMD64", "i686")


def name() -> str:
    """Return the CPU's model name."""
    return _info().get("model name", platform.processor() or platform.machine())


def fingerprint() -> str:
    """Return what timings on this machine depend on: model, instruction sets and number of its CPUs.

    The model's name is not enough: virtual machines report the same name for CPUs with and without VNNI.
    """
    return f"{name()}, {' '.join(isa())}, {os.cpu_count()}"


def isa() -> list[str]:
    """Return the instruction sets that matter to INT8 and that this CPU has, as far as the system lists them."""
    flags = (_info().get("flags") or _info().get("Features") or "").split()
    return [flag for flag in _INT8_FLAGS if flag in flags]


def saturates(machine: str | None = None, flags: Collection[str] | None = None) -> bool:
    """Whether INT8 kernels of a CPU may add pairs of products in 16 bits, which saturates.

    x86 CPUs without VNNI multiply with ``vpmaddubsw``. 255 * 127 * 2 does not fit into its 16 bits, 255 * 63 * 2 does.

    Args:
        machine: its architecture, as ``platform.machine()`` names it; this machine's by default.
        flags: its instruction sets, as :func:`isa` names them; this machine's by default.

    Example:
        >>> saturates("x86_64", ["avx2"]), saturates("x86_64", ["avx2", "avx_vnni"]), saturates("aarch64", [])
        (True, False, False)
    """
    machine = platform.machine() if machine is None else machine
    return machine in _X86 and not has_vnni(flags)


def has_vnni(flags: Collection[str] | None = None) -> bool:
    """Whether a CPU, this one by default, adds products of integers in 32 bits by one instruction."""
    return not _VNNI.isdisjoint(isa() if flags is None else flags)


def _info() -> dict[str, str]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
