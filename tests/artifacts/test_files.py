"""An artifact's files: those that are listed and no others, regular, and refused by a named error."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from damage.tampering import batch, describe, description, network, signed_again
from torch import nn

import lq_plugin
from lq_plugin.artifacts import onnx as onnx_format
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.errors import ArtifactError, ConfigError
from lq_plugin.graph.signature import Signature


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, artifacts: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of an artifact, of each format."""
    return Path(shutil.copytree(artifacts[request.param], tmp_path / request.param))


@pytest.fixture
def of(artifacts: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(artifacts[name], tmp_path / f"copy-{name}"))


def load(folder: Path) -> nn.Module:
    return lq_plugin.load(folder, threads=1, factory=network)


# What kind of file it is.


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def elsewhere(file: Path) -> None:
    shutil.move(file, file.parent.parent / file.name)
    file.symlink_to(file.parent.parent / file.name)


def folded(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("change", [fifo, endless, elsewhere, folded])
def test_no_file_is_a_pipe_a_device_a_link_or_a_folder(change: Callable[[Path], None], folder: Path) -> None:
    for file in (folder / "artifact.json", *(folder / name for name in description(folder)["files"])):
        saved = file.read_bytes()
        change(file)
        with pytest.raises(ArtifactError, match=rf"{file.name}' .*is (not a regular file|a link)"):
            load(folder)
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        file.write_bytes(saved)
    assert load(folder)(batch()).shape == (2, 3)


@pytest.mark.parametrize("threads", [0, -1, True, "2"])
def test_threads_are_a_number_above_zero(threads: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^threads: "):
        lq_plugin.load(folder, threads=threads)


def test_the_folder_may_be_a_link(folder: Path) -> None:
    (folder.parent / "latest").symlink_to(folder)
    assert load(folder.parent / "latest")(batch()).shape == (2, 3)


@pytest.mark.parametrize("path", ["nowhere", "file", "file/onnx"])
def test_what_is_no_folder_holds_no_artifact(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ArtifactError, match="holds no artifact"):
        load(tmp_path / path)


# Which files are opened.


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/model.onnx", "notes.txt", "", ".", "artifact.json"])
def test_files_are_those_of_the_format(name: str, folder: Path) -> None:
    (folder.parent / "secret").write_text("secret")
    files = description(folder)["files"]
    describe(folder, description(folder) | {"files": files | {name: "0" * 64}})
    with pytest.raises(ArtifactError, match=r"not of this format: \["):
        load(folder)


def test_a_file_that_a_runtime_opens_is_listed(folder: Path) -> None:
    files = description(folder)["files"]
    for name in files:
        describe(folder, description(folder) | {"files": {other: sha for other, sha in files.items() if other != name}})
        with pytest.raises(ArtifactError, match=rf"missing: \['{name}'\]"):
            load(folder)


def test_a_file_that_is_not_listed_is_not_opened(of: Callable[[str], Path]) -> None:
    folder = of("onnx")
    outside(folder, "model.onnx.data", folder / "model.onnx.data")
    with pytest.raises(ArtifactError, match=r"model.onnx.data' is not listed in artifact.json"):
        load(folder)


def outside(folder: Path, location: str, weights: Path) -> None:
    """Move a model's weights into another file, which the model refers to as ``location``."""
    model = onnx.load(folder / "model.onnx")
    content = b""
    for tensor in model.graph.initializer:
        data = onnx.numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("raw_data")
        for field in ("float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="offset", value=str(len(content)))
        tensor.external_data.add(key="length", value=str(len(data)))
        content += data
    weights.write_bytes(content)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    signed_again(folder)


@pytest.mark.parametrize("location", ["../weights", "{absolute}", "weights", "sub/../weights", "*/_ORT_MEM_ADDR_/*"])
def test_weights_elsewhere_are_refused(location: str, of: Callable[[str], Path]) -> None:
    folder = of("onnx")
    weights = folder.parent / "weights" if location.startswith(("..", "{")) else folder / "weights"
    outside(folder, location.format(absolute=weights), weights)
    with pytest.raises(
        ArtifactError, match=r"reads weights from .* ArtifactExport writes them only to 'model.onnx.data'"
    ):
        load(folder)


@pytest.mark.parametrize("location", ["../weights", "{absolute}", "model.onnx.data"])
def test_onnxruntime_refuses_weights_outside_of_the_folder(location: str, of: Callable[[str], Path]) -> None:
    """It is the last line: this is what happens without our own checks."""
    import onnxruntime

    folder = of("onnx")
    weights = folder.parent / "weights"
    outside(folder, location.format(absolute=weights), weights)
    if location == "model.onnx.data":
        (folder / location).symlink_to(weights)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match=r"(?i)external data|absolute|escapes|outside|symlink"):
        onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def test_weights_beside_a_large_model_are_listed_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_format, "_SINGLE_FILE_LIMIT", 0)
    candidate = lq_plugin.quantize(network(), [batch(4)])
    artifact = lq_plugin.export(candidate, tmp_path, ["onnx"])["onnx"]
    assert set(artifact.files) == {"model.onnx", "model.onnx.data"}
    torch.testing.assert_close(load(artifact.path)(batch()), network()(batch()), rtol=0, atol=0.1)
    elsewhere(artifact.path / "model.onnx.data")
    with pytest.raises(ArtifactError, match=r"model.onnx.data' is a link"):
        load(artifact.path)


# What artifact.json says.

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "newer schema": ({"schema_version": 2}, "schema_version 2 is unknown.* a newer one may have written it"),
    "schema as text": ({"schema_version": "1"}, "schema_version '1' is unknown"),
    "schema as truth": ({"schema_version": True}, "schema_version True is unknown"),
    "unknown format": ({"format": "gguf"}, "format 'gguf' is unknown; allowed are 'onnx', 'openvino'"),
    "format as list": ({"format": ["onnx"]}, "must be strings"),
    "candidate as number": ({"candidate": 3}, "must be strings"),
    "files as list": ({"files": ["model.onnx"]}, "files must hold a sha256"),
    "files without sha256": ({"files": {"model.onnx": "abc"}}, "files must hold a sha256"),
    "operators as text": ({"quantized_ops": "conv2d"}, "quantized_ops must be a list of records of name, op"),
    "operators without reason": ({"float_ops": [{"name": "x", "op": "y"}]}, "float_ops must be a list of records"),
    "signature as list": ({"signature": [1]}, "the signature is malformed"),
}


@pytest.mark.parametrize(("changes", "said"), WRONG.values(), ids=WRONG)
def test_values_of_another_type_are_refused(changes: dict[str, Any], said: str, of: Callable[[str], Path]) -> None:
    folder = of("onnx")
    describe(folder, description(folder) | changes)
    with pytest.raises(ArtifactError, match=rf"artifact.json' cannot be read: .*{said}"):
        load(folder)


@pytest.mark.parametrize("key", ["schema_version", "candidate", "format", "signature", "files", "float_ops"])
def test_values_that_are_missing_are_named(key: str, of: Callable[[str], Path]) -> None:
    folder = of("onnx")
    describe(folder, {name: value for name, value in description(folder).items() if name != key})
    with pytest.raises(ArtifactError, match=rf"artifact.json' cannot be read: it lacks '{key}'"):
        load(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "is nested too deeply|is not valid JSON"),
        ('{"a": NaN}', "is not valid JSON"),
        ('"' + "x" * (17 << 20) + '"', "is larger than 16 MiB"),
        ("9" * 10_000, "is not valid JSON"),
        ("\ud800".encode("utf-16", "surrogatepass"), "is not valid JSON"),
        ("null", "it is not a JSON object"),
    ],
    ids=["deep", "not a number", "large", "long number", "encoding", "null"],
)
def test_a_description_that_is_no_json_object_is_refused(
    text: str | bytes, said: str, of: Callable[[str], Path]
) -> None:
    folder = of("onnx")
    (folder / "artifact.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactError, match=rf"artifact.json' cannot be read: .*({said})"):
        load(folder)


# How it is called.

TENSOR: dict[str, Any] = {"tensor": 0, "dtype": "float32", "shape": [None, 3]}
PARAMETER: dict[str, Any] = {"name": "x", "kind": "POSITIONAL_OR_KEYWORD", "given": TENSOR, "default": None}
BENT: dict[str, dict[str, Any]] = {
    "name": {"name": "not a name"},
    "empty name": {"name": ""},
    "name as number": {"name": 3},
    "kind": {"kind": "__class__"},
    "kind as list": {"kind": []},
    "further field": {"planted": 1},
    "structure as number": {"given": 3},
    "no structure": {"given": {}},
    "two structures": {"given": {"constant": 1, "tensor": 0}},
    "unknown kind": {"given": {"set": []}},
    "negative position": {"given": TENSOR | {"tensor": -1}},
    "position as text": {"given": TENSOR | {"tensor": "0"}},
    "not the first position": {"given": TENSOR | {"tensor": 10**9}},
    "unknown dtype": {"given": TENSOR | {"dtype": "Tensor"}},
    "negative size": {"given": TENSOR | {"shape": [-1]}},
    "size as text": {"given": TENSOR | {"shape": ["3"]}},
    "shape as number": {"given": TENSOR | {"shape": 3}},
    "constant": {"given": {"constant": [1]}},
    "default": {"default": {"tensor": 0}},
    "keys of a list": {"given": {"list": [[1, TENSOR]]}},
    "keys twice": {"given": {"dict": [["a", TENSOR], ["a", TENSOR | {"tensor": 1}]]}},
    "keys as lists": {"given": {"dict": [[["a"], TENSOR]]}},
    "pairs of three": {"given": {"dict": [["a", TENSOR, 1]]}},
    "fields as source code": {"given": {"named_tuple": [["a; import os", TENSOR]]}},
    "fields as numbers": {"given": {"record": [[1, TENSOR]]}},
    "any number as a tensor": {"kind": "VAR_POSITIONAL"},
}


@pytest.mark.parametrize("changes", BENT.values(), ids=BENT)
def test_a_signature_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    assert Signature.from_json({"parameters": [PARAMETER], "output": TENSOR}).tensors() == [("x", TENSOR)]
    with pytest.raises(ValueError, match=r"the signature is malformed|valid parameter name|Type names and field names"):
        Signature.from_json({"parameters": [PARAMETER | changes], "output": TENSOR})


@pytest.mark.parametrize("parameters", [[PARAMETER, PARAMETER], [PARAMETER | {"kind": "VAR_KEYWORD"}, PARAMETER]])
def test_parameters_of_no_function_are_refused(parameters: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"malformed|parameter"):
        Signature.from_json({"parameters": parameters, "output": TENSOR})


def test_a_structure_is_not_nested_without_end() -> None:
    nested = TENSOR
    for _ in range(400):
        nested = {"list": [[0, nested]]}
    with pytest.raises(ValueError, match=r"nested too deeply|malformed"):
        Signature.from_json({"parameters": [], "output": nested})


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_constants_are_kept(value: float) -> None:
    read = Signature.from_json({"parameters": [PARAMETER], "output": {"constant": value}})
    stored = json.dumps(read.to_json(), allow_nan=False)
    assert Signature.from_json(json.loads(stored)).unflatten([]) == value


# What a runtime says of it.


def test_what_a_runtime_refuses_is_an_artifact_error_that_names_it(folder: Path) -> None:
    name = FORMATS[folder.name].files[-1] if folder.name == "torch" else FORMATS[folder.name].files[0]
    (folder / name).write_bytes(b"\x08\x07not a model")
    with pytest.raises(
        ArtifactError, match=rf"{folder.name}.*(is refused by \w+ \(\w+: .+\)|is not a complete archive)"
    ) as said:
        load(signed_again(folder))
    assert "\n" not in str(said.value)


def test_nothing_is_printed_about_it(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in FORMATS[folder.name].files:
        content = (folder / name).read_bytes()
        for damaged in (b"", content[: len(content) // 2], content.replace(b"o", b"\xff")):
            (folder / name).write_bytes(damaged)
            with contextlib.suppress(ArtifactError):  # other weights are a model as well
                load(signed_again(folder))
        (folder / name).write_bytes(content)
    assert capfd.readouterr() == ("", "")


def test_a_call_that_a_runtime_cannot_answer_is_an_artifact_error(of: Callable[[str], Path]) -> None:
    folder = of("onnx")
    content = description(folder)
    content["signature"]["parameters"][0]["given"]["shape"] = [None, 1, 9, 9]
    describe(folder, content)
    with pytest.raises(ArtifactError, match=r"onnx' is refused by onnxruntime \(\w+: .+\)"):
        load(folder)(torch.zeros(2, 1, 9, 9))


@pytest.mark.parametrize("name", ["onnx", "openvino", "pt2"])
def test_outputs_that_are_not_there_are_an_artifact_error(name: str, of: Callable[[str], Path]) -> None:
    folder = of(name)
    content = description(folder)
    content["signature"]["output"]["tensor"] = 7
    describe(folder, content)
    with pytest.raises(ArtifactError, match=r"is refused by \w+ \(IndexError: list index out of range\)"):
        load(folder)(batch())


def test_a_graph_says_how_it_is_called(of: Callable[[str], Path]) -> None:
    folder = of("onnx")
    describe(folder, description(folder) | {"signature": None})
    with pytest.raises(ArtifactError, match="has no call signature"):
        load(folder)


def test_what_the_factory_raises_is_the_users_own(of: Callable[[str], Path]) -> None:
    def broken() -> nn.Module:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        lq_plugin.load(of("torch"), factory=broken)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_tensors_of_another_kind_are_not_cast(dtype: torch.dtype, of: Callable[[str], Path]) -> None:
    folder = of("torch")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["float.0.weight"] = tensors["float.0.weight"].to(dtype)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"'0.weight' .* holds another kind"):
        load(signed_again(folder))


def test_what_a_killed_export_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    left = tmp_path / ".pt2-killed"
    left.mkdir()
    (left / "model.pt2").write_bytes(b"half")
    lq_plugin.export(lq_plugin.quantize(network(), [batch()]), tmp_path, ["pt2"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["pt2"]
