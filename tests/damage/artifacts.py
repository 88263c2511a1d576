"""Damaged artifacts of every format."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import onnx
import torch

import lq_plugin
from damage.harness import Case
from damage.mutations import SPECIAL, bent, cut, flipped, removed, special
from damage.tampering import PT2_GRAPH, batch, describe, description, made, members, network, pack, signed_again
from lq_plugin.artifacts.base import FORMATS

Damage = Callable[[Path, Random], object]
CONFIGS = tuple(f"archive/data/{name}s/model_{name}s_config.json" for name in ("weight", "constant"))


def specimens(folder: Path) -> None:
    """Make a tiny artifact of each format."""
    for name, path in made(folder / "made", *FORMATS).items():
        for unread in ("README.md", "run.py"):
            (path / unread).unlink(missing_ok=True)
        shutil.move(path, folder / name)
    shutil.rmtree(folder / "made")


def read(folder: Path) -> None:
    """Load an artifact and call it."""
    module = lq_plugin.load(folder, threads=1, factory=network)
    with torch.no_grad():
        module(batch())


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name != "artifact.json")


def to_a_file(damage: Damage) -> Damage:
    """Damage one of all files, and sign nothing."""
    return lambda folder, random: damage(random.choice(sorted(folder.iterdir())), random)


def signed(damage: Damage) -> Damage:
    """Damage one of the runtime's files, and make all checksums right."""

    def change(folder: Path, random: Random) -> None:
        damage(random.choice(files(folder)), random)
        signed_again(folder)

    return change


def special_file(name: str, kind: str) -> Damage:
    return lambda folder, random: special(folder / name, kind)


def described(folder: Path, random: Random) -> None:
    describe(folder, bent(description(folder), random))


def listed(folder: Path, random: Random) -> None:
    """List files under names that lead elsewhere."""
    content = description(folder)
    name = random.choice(list(content["files"]))
    other = random.choice(
        ("../secret", "/etc/passwd", "..", ".", "", "a\0b", f"./{name}", f"{name}/", "x" * 300, "CON")
    )
    value = content["files"].pop(name) if random.random() < 0.5 else "0" * 64
    content["files"][other] = value
    describe(folder, content)


def json_file(name: str) -> Damage:
    def change(folder: Path, random: Random) -> None:
        file = folder / name
        file.write_text(json.dumps(bent(json.loads(file.read_text()), random)))
        signed_again(folder)

    return change


def pt2_json(*names: str) -> Damage:
    def change(folder: Path, random: Random) -> None:
        content, name = members(folder / "model.pt2"), random.choice(names)
        content[name] = json.dumps(bent(json.loads(content[name]), random)).encode()
        pack(folder / "model.pt2", content)
        signed_again(folder)

    return change


def pt2_directory(folder: Path, random: Random) -> None:
    """Change what the headers of an archive say, and leave its content."""
    file = folder / "model.pt2"
    content = bytearray(file.read_bytes())
    header = random.choice([found.start() for found in re.finditer(b"PK(\3\4|\1\2|\5\6)", content)])
    for _ in range(random.choice((1, 2, 4))):
        place = header + random.randrange(4, 46)
        if place < len(content):
            content[place] = random.choice((0, 1, 8, 127, 255))
    file.write_bytes(content)
    signed_again(folder)


def onnx_fields(folder: Path, random: Random) -> None:
    """Change sizes, types, names and operators of a model that stays well-formed."""
    model = onnx.load(folder / "model.onnx")
    node, tensor = random.choice(list(model.graph.node)), random.choice(list(model.graph.initializer))
    huge = random.choice((-1, 0, 1 << 20, 1 << 40, (1 << 63) - 1))
    changes: tuple[Callable[[], object], ...] = (
        lambda: setattr(node, "op_type", random.choice(("", "Loop", "Scan", "If", "Conv", "Nothing", "EPContext"))),
        lambda: setattr(node, "domain", random.choice(("planted", "com.microsoft", "ai.onnx.ml"))),
        lambda: node.input.append(random.choice(("", "missing", node.output[0]))),
        lambda: node.input.__delitem__(slice(-1, None)),
        lambda: tensor.dims.append(huge),
        lambda: tensor.dims.__setitem__(0, huge) if tensor.dims else tensor.dims.append(huge),
        lambda: setattr(tensor, "data_type", random.choice((0, 1, 2, 7, 8, 11, 16, 999))),
        lambda: setattr(tensor, "raw_data", tensor.raw_data[:-1]),
        lambda: node.attribute.add(name="pads", type=onnx.AttributeProto.INTS, ints=[huge] * 4),
        lambda: node.attribute.add(name="strides", type=onnx.AttributeProto.INTS, ints=[0, 0]),
        lambda: model.opset_import.add(domain="", version=random.choice((0, 1, 9999))),
        lambda: model.graph.node.append(node),
        lambda: model.graph.output.__delitem__(slice(1)),
        lambda: model.graph.output.extend(model.graph.output[:1]),
    )
    for _ in range(random.choice((1, 1, 2))):
        random.choice(changes)()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    signed_again(folder)


def xml_values(folder: Path, random: Random) -> None:
    """Change the value of an attribute of OpenVINO's model, or the text of an element."""
    file = folder / "model.xml"
    text = file.read_text()
    for _ in range(random.choice((1, 1, 3))):
        found = random.choice(list(re.finditer(r'(?<==")[^"]*(?=")|(?<=<dim>)[^<]*(?=<)', text)))
        huge = ("-1", "0", "999999999999", "-9223372036854775808", "1,1,1,1,1", "u8", "f64", "opset99", "../x", "")
        text = text[: found.start()] + random.choice((*huge, "Assign", "Loop", "ReadValue")) + text[found.end() :]
    file.write_text(text)
    signed_again(folder)


def tensor_header(folder: Path, random: Random) -> None:
    """Change what the header of a file of tensors says of them."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if random.random() < 0.2:
        header, size = content[8 : 8 + size], random.choice((0, 1, size + 1, 1 << 31, (1 << 64) - 1))
    else:
        header = json.dumps(bent(json.loads(content[8 : 8 + size]), random)).encode()
        size = len(header)
    file.write_bytes(size.to_bytes(8, "little") + header + content[8 + int.from_bytes(content[:8], "little") :])
    signed_again(folder)


def expressions(folder: Path, random: Random) -> None:
    """Put other expressions in the place of a dynamic size."""
    content = members(folder / "model.pt2")
    parts = (
        "9",
        "**",
        "Pow(",
        "Integer(9)",
        ", ",
        ")",
        "Symbol('s1', integer=True)",
        "Mul(",
        "Max(",
        "*",
        "(",
        "lambda:",
    )
    text = "".join(random.choice(parts) for _ in range(random.randrange(1, 40)))
    graph = content[PT2_GRAPH].decode()
    content[PT2_GRAPH] = re.sub(r"Symbol\('s\d+', [^)]*\)", lambda _: text, graph, count=1).encode()
    pack(folder / "model.pt2", content)
    signed_again(folder)


EVERY: dict[str, tuple[Damage, int]] = {
    "flipped": (to_a_file(flipped), 30),
    "cut": (to_a_file(cut), 30),
    "removed": (removed, 12),
    "flipped, signed again": (signed(flipped), 60),
    "cut, signed again": (signed(cut), 40),
    "description": (described, 80),
    "listed names": (listed, 20),
}
ONE: dict[str, dict[str, tuple[Damage, int]]] = {
    "onnx": {"fields": (onnx_fields, 90)},
    "openvino": {"values": (xml_values, 90)},
    "pt2": {
        "graph": (pt2_json(PT2_GRAPH), 110),
        "tensors": (pt2_json(*CONFIGS), 50),
        "directory": (pt2_directory, 60),
        "expressions": (expressions, 40),
    },
    "torch": {"layers": (json_file("layers.json"), 80), "header": (tensor_header, 60)},
}


def cases() -> Iterator[Case]:
    """Every case; those of a kind differ by their number."""
    for name in FORMATS:
        for number, (kind, file) in enumerate(itertools.product(SPECIAL, ("artifact.json", *FORMATS[name].files))):
            yield Case(f"{name}, special file {number}", name, special_file(file, kind), read)
        for kind, (damage, count) in (EVERY | ONE[name]).items():
            for number in range(count):
                yield Case(f"{name}, {kind} {number}", name, damage, read)
