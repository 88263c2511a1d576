"""What is installed: a wheel that works without the checkout, with every package and every data file in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
SOURCES = {"lq_plugin": "lq_plugin", "conf": "lq_plugin/conf", "recipes": "lq_plugin/recipes"}


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
    """Give an environment that holds the wheel, and sees the dependencies of this one but not its lq_plugin."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths("venv", {"base": str(home), "platbase": str(home), "installed_base": str(home)})
    site = Path(paths["purelib"])
    pip = [sys.executable, "-m", "pip", "--python", str(home), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    # A folder named in a .pth file is searched after the wheel's, and .pth files within it, which editable installs
    # use, are not read.
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(here))
    return home / "bin"


def run(command: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
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
    printed = run([str(installed / "lq-train"), "--cfg", "job", "recipe=mnist_cnn"], tmp_path)
    assert "_target_: lq_plugin.recipes.mnist_cnn.model.MnistCnn" in printed
    assert "monitor: val/acc" in printed
