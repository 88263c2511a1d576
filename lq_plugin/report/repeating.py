"""How to load what a run has made, and how to repeat it: code, command, configuration and provenance."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from lq_plugin.artifacts.base import FORMATS
from lq_plugin.printing import plain
from lq_plugin.report.decoder import encode
from lq_plugin.report.limits import LONGEST_VALUE
from lq_plugin.report.manifest import Entry, Manifest
from lq_plugin.report.page import LONGEST
from lq_plugin.report.runs import QUANTIZED, flat


def loading(manifest: Manifest) -> dict[str, str]:
    """Return code that loads each artifact, by its label."""
    return {entry.label: _loading(entry, manifest) for entry in manifest.artifacts if entry.path is not None}


def _loading(entry: Entry, manifest: Manifest) -> str:
    place = repr(f"{QUANTIZED}/{entry.path}")
    known_format = FORMATS.get(entry.format)
    if known_format is None or known_format.rebuild is None:  # it holds a graph, and needs no class of the user's
        return f"import lq_plugin\n\nmodel = lq_plugin.load({place})"
    module, _, name = manifest.config.model.rpartition(".")
    known = all(part.isidentifier() for part in (*module.split("."), name))
    module, name = (module, name) if known else ("my_package", "MyModel")
    return f"import lq_plugin\nfrom {module} import {name}\n\nmodel = lq_plugin.load({place}, factory={name})"


def command(manifest: Manifest) -> str:
    """Return the line that made the run; empty where it was no command."""
    return shlex.join(manifest.config.command)


def configuration(manifest: Manifest) -> str:
    """Return the options of the run as YAML: all of them where it was configured as a whole, else the callbacks'."""
    text: str = yaml.safe_dump(encode(manifest.config.options), sort_keys=False, allow_unicode=True, width=100)
    rest = "\n# … the rest is in the manifest"
    return text if len(text) <= LONGEST else text[: LONGEST - len(rest)] + rest


def provenance(manifest: Manifest) -> dict[str, dict[str, str]]:
    """Return where the weights and statistics of each candidate come from."""
    return {name: _texts(found) for name, found in manifest.calibration.items()}


def environment(manifest: Manifest) -> dict[str, str]:
    """Return what all of it was measured with."""
    used = manifest.environment
    known = {
        "CPU": used.cpu,
        "instruction sets": ", ".join(used.isa),
        "cores": used.cores,
        "threads of torch": used.threads,
        "platform": used.platform,
        "seed": manifest.seed,
        **used.versions,
    }
    return _texts(known)


def _texts(found: Mapping[str, Any]) -> dict[str, str]:
    """What is known, as text; a key by words."""
    texts = {key: plain(value) for key, value in flat(found).items() if value is not None and value != ""}
    return {
        key.replace("_", " ").replace(".", ", "): text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
        for key, text in texts.items()
    }
