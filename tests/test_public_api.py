"""The public names."""

from __future__ import annotations

import inspect
import subprocess
import sys

import lq_plugin
from lq_plugin import errors


def test_all_is_sorted_and_complete() -> None:
    assert sorted(lq_plugin.__all__) == lq_plugin.__all__
    public = {
        name for name, value in vars(lq_plugin).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(lq_plugin.__all__)


def test_the_promised_names_are_there() -> None:
    promised = {"ArtifactExport", "Int8Evaluation", "StaticQuantization", "calibrate", "evaluate", "export", "load"}
    assert promised | {"quantize"} <= set(lq_plugin.__all__)


def test_every_public_name_is_documented() -> None:
    assert [name for name in lq_plugin.__all__ if not inspect.getdoc(getattr(lq_plugin, name))] == []


def test_every_error_stands_in_the_drawn_tree() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.LqError)]
    assert len(kinds) > 5
    assert [kind.__name__ for kind in kinds if kind.__name__ not in (errors.__doc__ or "")] == []


def test_importing_the_package_says_nothing_and_starts_no_runtime() -> None:
    code = (
        "import sys, lq_plugin;"
        "print([name for name in ('onnx', 'onnxruntime', 'openvino', 'hydra') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
