"""The public names."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest

import lq_plugin
from lq_plugin import errors, renamed
from lq_plugin.errors import ConfigError


def test_all_is_sorted_and_every_name_has_a_home() -> None:
    assert sorted(lq_plugin.__all__) == lq_plugin.__all__
    assert set(lq_plugin._HOMES) == set(lq_plugin.__all__)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        lq_plugin.quantise  # noqa: B018


@pytest.mark.parametrize("old", sorted(renamed.NAMES))
def test_an_old_name_says_its_new_one(old: str) -> None:
    assert renamed.NAMES[old] in lq_plugin.__all__
    with pytest.raises(AttributeError, match=f"was renamed. Use lq_plugin.{renamed.NAMES[old]}"):
        getattr(lq_plugin, old)


def test_an_old_option_says_its_new_one() -> None:
    with pytest.raises(ConfigError, match=r"max_loss: this option was renamed. Write max_drop=0.1"):
        lq_plugin.Budget(max_loss=0.1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"momentum: this option was renamed. Write averaging_constant=0.2"):
        lq_plugin.MovingAverageMinMaxObserver(momentum=0.2)  # type: ignore[call-arg]


def test_loading_an_artifact_needs_neither_lightning_nor_torchao() -> None:
    code = (
        "import sys, lq_plugin; lq_plugin.load; lq_plugin.find_results;"
        "print([name for name in ('lightning', 'torchao', 'torchmetrics') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n")


def test_the_promised_names_are_there() -> None:
    callbacks = {"ArtifactExport", "DynamicQuantization", "Int8Evaluation", "StaticQuantization"}
    functions = {"calibrate", "evaluate", "export", "find_results", "load", "quantize"}
    assert callbacks | functions <= set(lq_plugin.__all__)


def test_every_public_name_is_documented() -> None:
    assert [name for name in lq_plugin.__all__ if not inspect.getdoc(getattr(lq_plugin, name))] == []


def test_every_error_stands_in_the_drawn_tree() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.LqError)]
    assert len(kinds) > 5
    assert [kind.__name__ for kind in kinds if kind.__name__ not in (errors.__doc__ or "")] == []


def test_importing_the_package_says_nothing_starts_no_runtime_and_turns_telemetry_off() -> None:
    code = (
        "import os, sys, lq_plugin;"
        "print([name for name in ('onnx', 'onnxruntime', 'openvino', 'hydra') if name in sys.modules]);"
        "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    unset = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=unset)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n1\n", "")
