"""What the scripts of the commands call: the help is printed without importing torch and Lightning, which take seconds.

``lq-train --help`` took 7 s of an AMD EPYC's time with them.
"""

from __future__ import annotations

import importlib
import sys

import hydra
from omegaconf import DictConfig

from lq_plugin.apps import resolvers, schema

HELP = (["--help"], ["-h"])


def lq_train() -> None:
    """Run ``lq-train``."""
    if sys.argv[1:] in HELP:
        _print_help("train")
    else:
        from lq_plugin.apps.train import main

        main()


def lq_quantize() -> None:
    """Run ``lq-quantize``."""
    if sys.argv[1:] in HELP:
        _print_help("quantize")
    else:
        from lq_plugin.apps.quantize import main

        main()


def _print_help(config_name: str) -> None:
    """Let Hydra print the help of a configuration, whose options no override changes and so nothing has to check."""
    importlib.import_module(resolvers.CONF)  # which registers schemas that check
    schema.register(checked=False)

    def task(config: DictConfig) -> None:
        """Is never called."""

    hydra.main(version_base="1.3", config_path="pkg://lq_plugin.conf", config_name=config_name)(task)()
