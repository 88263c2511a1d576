"""``layout="huggingface"``: the names that common libraries look for, and the same artifact under them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from damage.tampering import batch, network
from huggingface_hub import ModelCard
from keys import Keys, keys
from tiny import Images, Tiny, fit
from torch import Tensor, nn

import lq_plugin
from lq_plugin import ArtifactExport, Int8Evaluation, Scheme, StaticQuantization
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.artifacts.description import read, rearranged
from lq_plugin.errors import ArtifactError, ConfigError, MissingExtraError
from lq_plugin.hub import configuration
from lq_plugin.report import files, manifest
from lq_plugin.store import copy_folder

NAMES = {
    "onnx": ["onnx/model_quantized.onnx"],
    "openvino": ["openvino_model.bin", "openvino_model.xml"],
    "pt2": ["model.pt2"],
    "torch": ["layers.json", "model.safetensors"],
}


class Configuration:
    """As those of transformers are written."""

    def to_json_string(self) -> str:
        return '{"model_type": "bert"}'


class Model(Tiny):
    """A LightningModule around a model with a configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.net.config = Configuration()


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return keys(tmp_path_factory.mktemp("mine"), "key")


@pytest.fixture(scope="module")
def quantized(mine: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that signs what it hands over."""
    folder = tmp_path_factory.mktemp("run")
    export = ArtifactExport(["onnx", "openvino"], layout="huggingface", sign=mine.private)
    fit(folder, Model(), StaticQuantization(algorithms=()), export, Int8Evaluation(latency=None), data=Images())
    return folder / "quantized"


@pytest.fixture
def laid_out(artifacts: dict[str, Path], tmp_path: Path) -> Path:
    return rearranged(read(Path(shutil.copytree(artifacts["onnx"], tmp_path / "onnx")))).path


@pytest.mark.parametrize("name", FORMATS)
def test_an_artifact_is_the_same_under_other_names(name: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
    def outputs(folder: Path) -> Tensor:
        made: Tensor = lq_plugin.load(folder, threads=1, factory=network)(batch())
        return made

    before = read(Path(shutil.copytree(artifacts[name], tmp_path / name)))
    expected, size = outputs(before.path), before.size_bytes
    made = rearranged(before)
    assert sorted(made.files) == NAMES[name]
    assert sorted(made.files.values()) == sorted(before.files.values())
    assert made.size_bytes == size
    copy_folder(made.path, tmp_path / "copy")
    assert torch.equal(outputs(tmp_path / "copy"), expected)


def test_libraries_find_what_a_run_made(quantized: Path) -> None:
    session = onnxruntime.InferenceSession(quantized / "static" / "onnx" / "onnx" / "model_quantized.onnx")
    model = openvino.Core().read_model(quantized / "static" / "openvino" / "openvino_model.xml")
    assert [value.name for value in session.get_outputs()] == ["output"]
    assert [value.names for value in model.outputs] == [{"output"}]
    for folder in (quantized / "static" / "onnx", quantized / "static" / "openvino"):
        runtime = ["onnxruntime"] if folder.name == "onnx" else []  # the library lists a tag once
        card = ModelCard((folder / "README.md").read_text())
        assert card.data.to_dict() == {"tags": ["lq_plugin", "int8", folder.name, *runtime]}
        assert "val/acc" in card.text
        assert json.loads((folder / "config.json").read_text()) == {"model_type": "bert"}


def test_a_run_signs_all_that_is_in_the_folder(quantized: Path, mine: Keys, tmp_path: Path) -> None:
    for name in ("README.md", "config.json", "onnx/model_quantized.onnx"):
        folder = tmp_path / name.partition(".")[0]
        copy_folder(quantized / "static" / "onnx", folder)
        assert lq_plugin.load(folder, verify=mine.public)
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        with pytest.raises(ArtifactError, match=rf"is not what the owner .* signed .*{name}"):
            lq_plugin.load(folder, verify=mine.public)


def test_the_manifest_lists_the_files_where_they_are(quantized: Path, mine: Keys) -> None:
    assert Path(mine.private).name not in (quantized / "manifest.json").read_text()
    content = manifest.read(quantized / "manifest.json")
    assert [sorted(entry.sha256) for entry in content.artifacts] == [NAMES["onnx"], NAMES["openvino"]]
    assert [found for found, _ in files.compared(quantized, content.artifacts)] == [files.AS_MEASURED] * 2
    assert (content.config.export["layout"], content.config.export["sign"]) == ("huggingface", True)
    assert all(entry.status != "failed" and entry.kernels is not None for entry in content.artifacts)


def test_its_script_and_its_code_find_the_files(laid_out: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-I", laid_out / "run.py", "--output", tmp_path / "outputs.npz"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert outputs["output"].shape == (8, 3)


@pytest.mark.parametrize("name", ["model.onnx", "onnx/model.onnx.data"])
def test_files_of_the_other_layout_are_not_opened(name: str, laid_out: Path) -> None:
    (laid_out / name).write_bytes(b"")
    with pytest.raises(ArtifactError, match=rf"{name}' is not listed in artifact.json"):
        lq_plugin.load(laid_out)


def test_the_folder_below_is_no_link(laid_out: Path) -> None:
    (laid_out / "onnx").rename(laid_out.parent / "elsewhere")
    (laid_out / "onnx").symlink_to(laid_out.parent / "elsewhere")
    with pytest.raises(ArtifactError, match="lies in a link"):
        lq_plugin.load(laid_out)
    with pytest.raises(ValueError, match="is a link"):
        copy_folder(laid_out, laid_out.parent / "copy")


def test_what_cannot_work_is_known_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"layout: 'hugginface' is unknown. Did you mean 'huggingface'\?"):
        ArtifactExport(["onnx"], layout="hugginface")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"layout: 'huggingface' needs .*pip install 'lq_plugin\[hub\]'"):
        ArtifactExport(["onnx"], layout="huggingface")
    assert ArtifactExport(["onnx"]).layout == "plain"


def test_a_module_without_a_configuration_has_none() -> None:
    assert configuration(Tiny()) is None
    model = nn.Sequential(nn.Linear(2, 2))
    model.config = {"model_type": "bert"}  # type: ignore[assignment]  # of another library
    assert configuration(model) is None


class Odd(nn.Module):
    """Outputs whose names are taken, that are an input, and that are no words."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, logits: Tensor) -> dict[str, Any]:
        linear = self.linear(x)
        return {"logits": linear, "logits_out": linear + logits, "x": x, "a b": (linear * 2, x.shape[0]), "0": x + 1}


def test_outputs_have_names_of_their_own(tmp_path: Path) -> None:
    given = (torch.randn(3, 4), torch.randn(3, 1))
    candidate = lq_plugin.quantize(Odd(), [given], Scheme(algorithms=()))
    folder = lq_plugin.export(candidate, tmp_path, ["onnx"])["onnx"].path
    names = [value.name for value in onnxruntime.InferenceSession(folder / "model.onnx").get_outputs()]
    assert len({*names, "logits"}) == len(names) + 1  # which is an input
    assert {"logits_out", "logits_out_out", "a_b_0", "output_0"} <= set(names)
    assert list(lq_plugin.load(folder)(*given)) == ["logits", "logits_out", "x", "a b", "0"]
