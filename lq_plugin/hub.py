"""What Hugging Face's libraries expect beside a model: metadata in README.md, and ``config.json``. Works offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lq_plugin.durable import replace_file
from lq_plugin.errors import require
from lq_plugin.report.manifest import Entry

CONFIG = "config.json"


def check_installed() -> Any:
    """Return the library that writes cards.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("huggingface_hub", "hub", "layout: 'huggingface'")


def metadata(entry: Entry) -> str:
    """Return what is known of an artifact as the hub reads it, at the beginning of README.md.

    The license, the data, the task and the model that this one was trained from are not known here, so the card names
    none: they are its author's to add.
    """
    data = check_installed().ModelCardData(tags=["lq_plugin", "int8", entry.format, entry.runtime])  # each once
    return f"---\n{data.to_yaml()}\n---\n\n"


def write_configuration(folder: Path, target: nn.Module) -> None:
    """Write the configuration of a module beside its artifact, where it has one; see :func:`configuration`."""
    config = configuration(target)
    if config is not None:
        replace_file(folder / CONFIG, config)


def configuration(target: nn.Module) -> str | None:
    """Return the configuration of the outermost model of transformers in a module, as JSON; ``None`` without one."""
    for module in target.modules():
        write = getattr(getattr(module, "config", None), "to_json_string", None)
        if callable(write):
            return str(write())
    return None
