"""What is installed: a wheel that works without the checkout, with every package and every data file in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from somebodys import MODEL

CHECKOUT = Path(__file__).parents[1]
SOURCES = {
    "hydra_plugins": "hydra_plugins",
    "lq_plugin": "lq_plugin",
    "conf": "lq_plugin/conf",
    "recipes": "lq_plugin/recipes",
}

WITH_THE_CORE = """
import lightning as L, torch, lq_plugin
from model import Data, Net

callbacks = [lq_plugin.StaticQuantization(), lq_plugin.DynamicQuantization(), lq_plugin.ArtifactExport(["pt2"])]
trainer = L.Trainer(max_epochs=1, callbacks=[*callbacks, lq_plugin.Int8Evaluation(latency=None)])
trainer.fit(Net(), datamodule=Data())
results = lq_plugin.find_results(trainer)[0]
module = lq_plugin.load(results.artifacts["static/pt2"])
print(*sorted(results.artifacts), tuple(module(torch.randn(3, 6)).shape))
try:
    L.Trainer(callbacks=[lq_plugin.StaticQuantization(), lq_plugin.ArtifactExport()]).fit(Net(), datamodule=Data())
except lq_plugin.errors.MissingExtraError as error:
    print(error)
"""
WITH_ONNX = """
import torch, lq_plugin
from torch import nn

model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
candidate = lq_plugin.quantize(model, [torch.randn(8, 6)], lq_plugin.Scheme(algorithms=[]))
artifacts = lq_plugin.export(candidate, "quantized", ["onnx"])
print(tuple(lq_plugin.load(artifacts["onnx"].path)(torch.randn(3, 6)).shape))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy: a build leaves folders behind."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(made)]
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    return next(made.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an environment as ``pip install lq_plugin`` leaves it: the wheel, and what its core depends on."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths("venv", {"base": str(home), "platbase": str(home), "installed_base": str(home)})
    pip = [sys.executable, "-m", "pip", "--python", str(home), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    link(requirements(wheel), Path(paths["purelib"]))
    return home / "bin"


def requirements(wheel: Path) -> list[str]:
    (folder,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    return metadata.PathDistribution(folder).requires or []  # type: ignore[arg-type]


def link(requirements: Sequence[str], site: Path, extra: str = "") -> None:
    """Put what some requirements need, and what that needs in turn, into a folder: links to what is installed here."""
    waiting = [(requirement, extra) for requirement in requirements]
    seen = set()
    while waiting:
        text, wanted_by = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": wanted_by}):
            continue
        for each in ("", *requirement.extras):
            if (requirement.name, each) not in seen:
                seen.add((requirement.name, each))
                waiting += [(below, each) for below in metadata.requires(requirement.name) or ()]
    for file in (file for name, _ in seen for file in metadata.files(name) or ()):
        place = site / file.parts[0]
        if file.parts[0] not in ("..", "__pycache__", "lq_plugin") and not place.exists():
            place.symlink_to(metadata.distribution("pip").locate_file("") / file.parts[0])


def run(command: list[str], folder: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_source_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{inside}/{file.relative_to(CHECKOUT / name).as_posix()}"
        for name, inside in SOURCES.items()
        for file in (CHECKOUT / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert expected - held == set()
    assert {name for name in held if name.endswith(".yaml")} - expected == set()


def test_the_wheel_is_what_gets_imported(installed: Path, tmp_path: Path) -> None:
    code = (
        "import lq_plugin, lq_plugin.conf as c, lq_plugin.recipes as r; print(*(m.__file__ for m in (lq_plugin, c, r)))"
    )
    places = run([str(installed / "python"), "-c", code], tmp_path).split()
    assert [Path(place).is_relative_to(installed.parent) for place in places] == [True, True, True]


def test_lq_train_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    printed = run([str(installed / "lq-train"), "--cfg", "all", "recipe=mnist_cnn", "sweep=optuna"], tmp_path)
    assert "_target_: lq_plugin.recipes.mnist_cnn.model.MnistCnn" in printed
    assert "monitor: val/acc" in printed
    assert "_target_: hydra_plugins.lq_optuna.OptunaSweeper" in printed


def test_the_core_alone_makes_the_first_int8_model(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "first.py").write_text(WITH_THE_CORE)
    made, missing = run([str(installed / "python"), "first.py"], tmp_path).splitlines()[-2:]
    assert made == "dynamic/torch static/pt2 (3, 2)"
    assert "pip install 'lq_plugin[onnx" in missing


def test_an_extra_adds_its_format(installed: Path, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "extra").mkdir()
    link(requirements(wheel), tmp_path / "extra", extra="onnx")
    (tmp_path / "first.py").write_text(WITH_ONNX)
    printed = run([str(installed / "python"), "first.py"], tmp_path, PYTHONPATH=str(tmp_path / "extra"))
    assert printed.splitlines()[-1] == "(3, 2)"
