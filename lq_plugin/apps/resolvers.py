"""What the files of ``conf/`` interpolate besides what Hydra offers: ``${lq_plugin.NAME:}``."""

from __future__ import annotations

import importlib
import os
from importlib import resources
from typing import cast

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

CONF = "lq_plugin.conf"


def register() -> None:
    """Make them known to OmegaConf."""
    for resolver in (run_folder, groups):
        OmegaConf.register_new_resolver(f"lq_plugin.{resolver.__name__}", resolver, replace=True)


def run_folder() -> str:
    """Return the folder of Hydra's run, or the working folder where a configuration is composed outside of an app."""
    hydra = cast("DictConfig", HydraConfig.get()) if HydraConfig.initialized() else OmegaConf.create()
    return str(OmegaConf.select(hydra, "runtime.output_dir") or os.getcwd())


def groups() -> str:
    """Return the groups with their options and what they are for, a line each, as ``lq-train --help`` shows them.

    The options are the files of a group, the default is that of ``train.yaml``, and what a group is for is the
    docstring of its package.
    """
    listed = yaml.safe_load((resources.files(CONF) / "train.yaml").read_text())["defaults"]
    return "\n".join(_row(*choice) for entry in listed if entry != "_self_" for choice in entry.items())


def _row(group: str, default: str | None) -> str:
    folder = resources.files(CONF) / group
    options = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    if default is not None:
        options = [f"[{default}]", *(option for option in options if option != default)]
    purpose = str(importlib.import_module(f"{CONF}.{group}").__doc__).rstrip(".")
    return f"  {group:<13} {' '.join(options):<48}  {purpose}"
