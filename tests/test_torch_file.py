"""Files of torch.save are read without running what is in them, and what is damaged is refused by a named error."""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import enum
import functools
import io
import os
import pickle
import resource
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lq_plugin.torch_file import Foreign, foreign_in, read

PROTOCOLS = (2, 3, 4, 5)


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


class Restoring:
    """Does something when its state is restored."""

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("ran")

    def __getstate__(self) -> Any:
        return {"a": 1}


class Mapping(dict):  # type: ignore[type-arg]
    def __setitem__(self, key: Any, value: Any) -> None:
        raise AssertionError("ran")


class Items(list):  # type: ignore[type-arg]
    def extend(self, items: Any) -> None:
        raise AssertionError("ran")


class Named:
    """Made by a call with named arguments."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getnewargs_ex__(self) -> Any:
        return (), {"name": self.name}

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls)


class Colour(enum.Enum):
    RED = 1


Pair = collections.namedtuple("Pair", ["a", "b"])

PLAIN = {
    "numbers": [1, -2, 2**40, 2**3000, 1.5, 1 + 2j, True, None],
    "texts": ["é", b"\x00\xff", bytearray(b"ab")],
    "containers": ({1, 2}, (1, 2, 3, 4), collections.OrderedDict(a=1), collections.Counter("aab")),
    "of torch": [torch.float32, torch.device("cpu"), torch.Size([2, 3]), torch.strided],
}
FOREIGN = {
    "functools.partial": functools.partial(nn.ReLU, inplace=True),
    "collections.defaultdict": collections.defaultdict(list, {1: [2]}),
    "argparse.Namespace": argparse.Namespace(a=1),
    "pathlib.PurePosixPath": PurePosixPath("a/b"),
    "numpy.": np.float32(3),
    "numpy.array": np.arange(3),
    ".Colour": Colour.RED,
    ".Pair": Pair(1, 2),
    ".Restoring": Restoring(),
    ".Mapping": Mapping(a=1),
    ".Items": Items([1, 2]),
    ".Named": Named("x"),
    "torch.nn.modules.activation.ReLU": nn.ReLU(),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file.ckpt"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[Planted.__module__])


def written(file: Path, description: bytes, **members: bytes) -> Path:
    """A file as torch.save writes it, but with any description and members."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", description)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", content)
    return file


def described(storage: type, key: str, count: int) -> bytes:
    """The description of memory that a tensor would lie in."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", storage, key, "cpu", count) if value is Pickler else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump([Pickler])
    return stream.getvalue()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_plain_values_are_read_as_they_were_saved(value: Any, protocol: int, file: Path) -> None:
    torch.save(value, file, pickle_protocol=protocol)
    found = read(file)
    assert found == value
    assert [type(item) for item in found] == [type(item) for item in value]
    assert foreign_in(found) is None


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(10)[2:8:2],
        torch.randn(2, 3).t(),
        torch.empty(0, 3),
        torch.randn(3).bfloat16(),
        torch.randn(2, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
        torch.tensor(True),
        torch.randn(2, 2).to(torch.float8_e4m3fn),
    ],
    ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}",
)
def test_tensors_are_read_as_they_were_saved(tensor: Tensor, file: Path) -> None:
    torch.save(tensor, file)
    found = read(file)
    assert (found.dtype, found.shape, found.layout) == (tensor.dtype, tensor.shape, tensor.layout)
    assert torch.equal(
        found.to_dense().float() if found.is_sparse else found.to(torch.complex64),
        (tensor.to_dense().float() if tensor.is_sparse else tensor.to(torch.complex64)),
    )


def test_a_state_dict_keeps_its_versions_and_its_tied_weights(file: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    module[2].weight = module[0].weight
    torch.save(module.state_dict(), file)
    found = read(file)
    assert found._metadata == module.state_dict()._metadata
    assert found["0.weight"].data_ptr() == found["2.weight"].data_ptr()
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_in_torchs_list_is_an_inert_placeholder(name: str, protocol: int, file: Path) -> None:
    torch.save({"foreign": FOREIGN[name], "plain": [1]}, file, pickle_protocol=protocol)
    found = read(file)
    assert found["plain"] == [1]
    assert isinstance(found["foreign"], Foreign)
    expected = "functools.partial" if name == ".Named" and protocol < 4 else name.removesuffix("array")
    assert expected in found["foreign"].name


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_planted_payload_does_not_run(protocol: int, tmp_path: Path, file: Path) -> None:
    planted = Planted(tmp_path / "ran")
    torch.save(
        {"w": torch.ones(2), "hyper": [planted, {"k": planted}], "t": (planted,)}, file, pickle_protocol=protocol
    )
    found = read(file)
    assert torch.equal(found["w"], torch.ones(2))
    assert foreign_in(found) == f"{os.name}.mkdir"
    assert not planted.marker.exists()
    torch.save(planted, file, pickle_protocol=protocol)
    torch.load(file, weights_only=False)  # which does what is planted
    assert planted.marker.exists()


@pytest.mark.parametrize(
    "description",
    [
        b"cposix\nsystem\n(S'touch ran'\ntR.",
        b"(S'touch ran'\niposix\nsystem\n.",  # INST
        b"(cposix\nsystem\nS'touch ran'\no.",  # OBJ
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x09touch ran\x85R.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nctorch\nTensor\n(S'touch ran'\nt}tR.",
        b"ccollections\nOrderedDict\n(ccollections\nOrderedDict\ntR}S'items'\ncposix\nsystem\nsb.",
        b"ctorch\nload\n(S'other.ckpt'\ntR.",
        b"ctorch.serialization\n_get_layout\n}S'__defaults__'\n(S'x'\ntsb.",  # a state for a function
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zipt\x81.",
    ],
    ids=["reduce", "inst", "obj", "stack-global", "nested", "shadowed", "load", "state-of-function", "codec"],
)
def test_no_instruction_reaches_outside(
    description: bytes, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(file, description)
    with contextlib.suppress(ValueError):
        found = read(file)
        assert foreign_in(found) in {"posix.system", "torch.load"} or found == {}
        assert not isinstance(found, dict) or list(found.items()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.ckpt"]
    assert torch.serialization._get_layout.__defaults__ is None


@pytest.mark.parametrize("count", [3, 5, 2**40, -1])
def test_memory_has_the_size_that_its_tensor_needs(count: int, file: Path) -> None:
    written(file, described(torch.FloatStorage, "0", count), _0=bytes(16))
    with pytest.raises(ValueError, match=r"its data/0 has 16 bytes in place of|has a data/0 of 16 bytes"):
        read(file)
    assert len(read(written(file, described(torch.FloatStorage, "0", 4), _0=bytes(16)))) == 1


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_no_offset_of_a_nested_tensor_is_believed(file: Path) -> None:
    torch.save(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), file)
    with pytest.raises(ValueError, match="a call of <function _rebuild_nested_tensor"):
        read(file)


def test_indices_of_a_sparse_tensor_lie_in_it(file: Path) -> None:
    torch.save(torch.tensor([0.0] * 7 + [1.0]).to_sparse(), file)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace((7).to_bytes(8, "little"), (9**9).to_bytes(8, "little")))
    with pytest.raises(ValueError, match=r"is damaged, or was not written by torch.save .*ind"):
        read(file)
    torch.save([1], file)
    assert read(file) == [1]


@pytest.mark.parametrize(
    "description",
    [b"r\xff\xff\xff\x7f.", b"]r\xff\xff\xff\x7f.", b"\x8b\xff\xff\xff\x7f.", b"\x8e" + b"\xff" * 7 + b"\x7f."],
    ids=["memo", "memo-of-list", "number", "bytes"],
)
def test_no_instruction_takes_the_memory_that_it_names(description: bytes, file: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(ValueError):
        assert read(written(file, description)) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def compressed(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([0] * 100_000))


def overlapping(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1, 2))
        archive.writestr("archive/data/0", bytes(5000))
        for number in range(1, 5):
            again = copy.copy(archive.getinfo("archive/data/0"))
            again.filename = f"archive/data/{number}"
            archive.filelist.append(again)


def script(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"N.")
        archive.writestr("archive/constants.pkl", b"N.")


def swapped(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"N.")
        archive.writestr("archive/byteorder", b"big")


def without_description(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/other", b"")


def truncated(file: Path) -> None:
    torch.save(torch.ones(100), file)
    file.write_bytes(file.read_bytes()[:-100])


def flipped(file: Path) -> None:
    torch.save(torch.full((100,), 3.0), file)
    content = bytearray(file.read_bytes())
    content[content.index(torch.full((4,), 3.0).numpy().tobytes())] ^= 1
    file.write_bytes(content)


def old(file: Path) -> None:
    torch.save(torch.ones(2), file, _use_new_zipfile_serialization=False)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda file: file.write_bytes(b""), "is empty"),
    "text": (lambda file: file.write_text("not a checkpoint"), "was not written by torch.save"),
    "pickle": (lambda file: file.write_bytes(pickle.dumps({"state_dict": {}})), "was not written by torch.save"),
    "old format": (old, "was not written by torch.save .*before 1.6"),
    "other zip": (without_description, "is a zip file, but was not written by torch.save"),
    "script": (script, "is a zip file, but was not written by torch.save"),
    "compressed": (compressed, "is compressed"),
    "overlapping": (overlapping, "claims to hold more than its size"),
    "byte order": (swapped, "another byte order"),
    "truncated": (truncated, "is cut off or damaged"),
    "flipped bit": (flipped, "is damaged .*CRC"),
    "folder": (Path.mkdir, "is not a regular file"),
    "pipe": (os.mkfifo, "is not a regular file"),
    "device": (lambda file: file.symlink_to("/dev/zero"), "is not a regular file"),
    "loop": (lambda file: file.symlink_to(file), "is a link|cannot be read"),
    "nothing": (lambda file: None, "cannot be read .*No such file"),
    "empty description": (lambda file: written(file, b""), "is damaged, or was not written by torch.save .*EOFError"),
    "nonsense": (lambda file: written(file, b"\x80\x02}q\x00("), "is damaged, or was not written by torch.save"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_file_of_torch_is_refused_by_name(kind: str, file: Path) -> None:
    prepare, message = REFUSED[kind]
    prepare(file)
    with pytest.raises(ValueError, match=message):
        read(file)


def test_a_link_to_a_file_is_followed(tmp_path: Path, file: Path) -> None:
    torch.save([1], tmp_path / "best.ckpt")
    file.symlink_to("best.ckpt")  # ModelCheckpoint(save_last="link")
    assert read(file) == [1]


def test_checksums_that_were_not_written_are_not_asked_for(file: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.ones(2), file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read(file), torch.ones(2))


def test_classes_that_the_user_calls_safe_are_made(file: Path) -> None:
    torch.save(argparse.Namespace(a=1), file)
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert read(file) == argparse.Namespace(a=1)
    assert foreign_in(read(file)) == "argparse.Namespace"


def test_a_container_that_holds_itself_is_searched_once(file: Path) -> None:
    value: list[Any] = [1]
    for _ in range(60):  # as a tree it would have 2 ** 60 leaves
        value = [value, value]
    value.append(value)
    torch.save(value, file)
    assert foreign_in(read(file)) is None
