"""What counts as the code behind a class."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from pathlib import Path

import pytest

from lq_plugin.apps.sources import versions

FILES = {
    "project/__init__.py": "",
    "project/base.py": "import json\nimport torch\nclass Base(torch.nn.Module):\n    pass\n",
    "project/model.py": (
        "from . import layers\nfrom .base import Base\nclass Model(Base):\n"
        "    def train_it(self):\n        from helpers import late\n        return late\n"
    ),
    "project/layers.py": "def layer():\n    import nowhere\n",
    "project/unused.py": "",
    "helpers.py": "late = 1\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_it_is_what_the_class_imports_and_inherits_and_the_versions_of_packages(project: Path) -> None:
    model = importlib.import_module("project.model").Model
    found = versions([model])
    files = {name: hashlib.sha256((project / file).read_bytes()).hexdigest() for name, file in (
        ("helpers", "helpers.py"),
        ("project.base", "project/base.py"),
        ("project.layers", "project/layers.py"),
        ("project.model", "project/model.py"),
    )}  # fmt: skip
    own = {name: digest for name, digest in found.items() if name.partition(".")[0] in ("project", "helpers")}
    assert files == {name: digest for name, digest in own.items() if name != "project"}
    assert {name: version for name, version in found.items() if name not in own} == {
        "torch": importlib.metadata.version("torch")
    }


def test_it_is_the_same_whatever_is_imported_already(project: Path) -> None:
    model = importlib.import_module("project.model").Model
    before = versions([model])
    importlib.import_module("project.unused")
    importlib.import_module("helpers")
    assert versions([model]) == before


@pytest.mark.parametrize("file", ["project/base.py", "project/layers.py", "helpers.py"])
def test_another_state_of_any_file_is_another_result(file: str, project: Path) -> None:
    model = importlib.import_module("project.model").Model
    before = versions([model])
    (project / file).write_text(FILES[file] + "more = 1\n")
    assert versions([model]) != before
    (project / file).write_text(FILES[file])
    assert versions([model]) == before
