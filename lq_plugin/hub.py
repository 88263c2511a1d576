"""What Hugging Face's libraries expect beside a model: metadata in README.md, and ``config.json``. Works offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lq_plugin.durable import replace_file
from lq_plugin.errors import require
from lq_plugin.report import readme
from lq_plugin.report.manifest import Entry, Manifest

CONFIG = "config.json"


def check_installed() -> Any:
    """Return the library that writes cards.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("huggingface_hub", "hub", "layout: 'huggingface'")


def hand_over(folder: Path, content: Manifest, targets: Mapping[str, nn.Module]) -> None:
    """Complete the folders of a run's artifacts, after their README.md was written.

    Args:
        folder: the manifest's.
        content: the manifest.
        targets: what was quantized, by the candidate's name; where it is a model of transformers, or holds one, its
            configuration is written too.
    """
    for entry in content.artifacts:
        if entry.path is None:
            continue
        place = folder / entry.path
        text = (place / readme.FILE).read_text("utf-8")
        replace_file(place / readme.FILE, with_metadata(text, entry))
        config = configuration(targets[entry.candidate]) if entry.candidate in targets else None
        if config is not None:
            replace_file(place / CONFIG, config)


def with_metadata(text: str, entry: Entry) -> str:
    """Return a card with what is known of an artifact, as the hub reads it.

    The license, the data, the task and the model that this one was trained from are not known here, so the card names
    none: they are its author's to add.
    """
    library = check_installed()
    data = library.ModelCardData(tags=["lq_plugin", "int8", entry.format, entry.runtime])  # each once
    return str(library.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def configuration(target: nn.Module) -> str | None:
    """Return the configuration of the outermost model of transformers in a module, as JSON; ``None`` without one."""
    for module in target.modules():
        write = getattr(getattr(module, "config", None), "to_json_string", None)
        if callable(write):
            return str(write())
    return None
