"""Tiny artifacts, and what somebody with bad intentions does to them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lq_plugin

PT2_GRAPH = "archive/models/model.json"


def network() -> nn.Module:
    """A convolution and a linear layer, with weights that are always the same."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()


def batch(samples: int = 2) -> Tensor:
    return torch.linspace(-1, 1, samples * 16).view(samples, 1, 4, 4)


def made(folder: Path, *formats: str) -> dict[str, Path]:
    """Export the network, and return the folder of each format."""
    folders: dict[str, Path] = {}
    for method in ("static", "dynamic"):
        asked = [name for name in formats if (name == "torch") == (method == "dynamic")]
        if asked:
            candidate = lq_plugin.quantize(network(), [batch(4)], method)
            artifacts = lq_plugin.export(candidate, folder / method, asked)
            folders |= {name: artifacts[name].path for name in asked}
    return folders


def description(folder: Path) -> Any:
    return json.loads((folder / "artifact.json").read_text())


def describe(folder: Path, content: Any) -> None:
    """Write ``artifact.json`` with the digest that belongs to its content."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "sha256"}
        content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "artifact.json").write_text(json.dumps(content))


def signed_again(folder: Path, **changes: Any) -> Path:
    """Make all checksums of a changed artifact right, with other values in ``artifact.json`` where they are given."""
    content = description(folder)
    content["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in content["files"]}
    describe(folder, content | changes)
    return folder


def members(file: Path) -> dict[str, bytes]:
    """What a zip file holds, by name."""
    with zipfile.ZipFile(file) as archive:
        return {member.filename: archive.read(member) for member in archive.infolist()}


def pack(file: Path, content: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def with_graph(folder: Path, change: Callable[[Any], Any]) -> Path:
    """Change the serialized graph of a ``.pt2``, and make the checksums right."""
    content = members(folder / "model.pt2")
    graph = json.loads(content[PT2_GRAPH])
    changed = change(graph)
    content[PT2_GRAPH] = json.dumps(graph if changed is None else changed).encode()
    pack(folder / "model.pt2", content)
    return signed_again(folder)


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in nested JSON, with each of its keys or positions."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from places(content[key])
