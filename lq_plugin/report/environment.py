"""What this process works with."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from lq_plugin import cpu
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.report.manifest import Environment

_CORE = ("lq_plugin", "torch", "torchao", "lightning", "torchmetrics")


def environment() -> Environment:
    """Return the versions of what is installed, and what the CPU of this machine is."""
    versions = {"python": platform.python_version()}
    for package in dict.fromkeys((*_CORE, *(package for made in FORMATS.values() for package in made.packages))):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Environment(
        versions=versions,
        cpu=cpu.name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        isa=tuple(cpu.isa()),
        platform=platform.platform(),
    )
