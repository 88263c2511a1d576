"""lq-train as a user runs it: a process of its own, in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import lq_plugin.conf

RECIPES = sorted(file.stem for file in Path(str(resources.files(lq_plugin.conf))).glob("recipe/*.yaml"))
SMOKE = ("recipe=mnist_cnn", "data.samples=96", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")


def lq_train(folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lq_plugin.apps.train", *overrides],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("argument", ["--help", "--cfg"])
def test_it_explains_itself(argument: str, tmp_path: Path) -> None:
    done = lq_train(tmp_path, *(("--cfg", "job") if argument == "--cfg" else (argument,)))
    assert (done.returncode, done.stderr) == (0, "")
    assert "recipe=mnist_cnn" in done.stdout if argument == "--help" else "lq_plugin.StaticQuantization" in done.stdout


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_leaves_artifacts_and_a_manifest(recipe: str, tmp_path: Path) -> None:
    quick = ("data.samples=96", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
    latency = [f"callbacks.evaluation.latency.{option}" for option in ("rounds=1", "seconds=0.01")]
    done = lq_train(tmp_path, f"recipe={recipe}", *quick, *latency, "hydra.run.dir=run")
    assert (done.returncode, done.stderr) == (0, "")
    quantized = tmp_path / "run" / "quantized"
    manifest = json.loads((quantized / "manifest.json").read_text())
    assert manifest["artifacts"]
    for artifact in manifest["artifacts"]:
        assert artifact["status"] != "failed" or "recurrent" in artifact["error"]
        assert all((quantized / artifact["path"] / name).is_file() for name in artifact["sha256"])
    assert manifest["config"]["run"]["data"]["samples"] == 96
    assert list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


def test_two_processes_train_together(tmp_path: Path) -> None:
    done = lq_train(tmp_path, *SMOKE, "trainer=ddp_cpu", "export=onnx", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    manifest = json.loads((tmp_path / "run" / "quantized" / "manifest.json").read_text())
    assert manifest["calibration"]["static"]["samples"] == 96
    assert [artifact["status"] for artifact in manifest["artifacts"]] != ["failed"]


MISTAKES = {
    "callbacks.static.smaples=3": "callbacks.static.smaples: there is no such option. Did you mean 'samples'?",
    "callbacks.static.samples=many": "Error merging override callbacks.static.samples=many: Value 'many'",
    "callbacks.static.observer=minmx": "callbacks.static.observer: 'minmx' is unknown. Did you mean 'minmax'?",
    "callbacks.static.skip=head": "str is not a ListConfig, list or tuple. Write a list, such as [head,op:add].",
    "observer=minmx": "Could not find 'observer/minmx'",
    "trainer.accelerator=gpo": "trainer: You selected an invalid accelerator name: `accelerator='gpo'`.",
    "export=null": "Config group override must be a string or a list.",
}
EACH = """
import sys
from lq_plugin.apps import train
smoke, mistakes = sys.argv[1].split(), sys.argv[2:]
for mistake in mistakes:
    sys.argv = ["lq-train", *smoke, mistake]
    try:
        train.main()
    except SystemExit as end:
        print(end.code, file=sys.stderr)
"""


def test_a_mistake_is_one_line_and_nothing_is_trained(tmp_path: Path) -> None:
    command = [sys.executable, "-c", EACH, " ".join(SMOKE), *MISTAKES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    lines = done.stderr.splitlines()
    assert len(lines) == len(MISTAKES)
    for line, said in zip(lines, MISTAKES.values(), strict=True):
        assert line.startswith("lq-train: ")
        assert said in line
    assert not list(tmp_path.rglob("*.ckpt"))
    alone = lq_train(tmp_path, *SMOKE, "callbacks.static.smaples=3")
    assert (alone.returncode, alone.stderr) == (1, f"{lines[0]}\n")


def test_the_full_trace_is_there_on_demand(tmp_path: Path) -> None:
    done = lq_train(tmp_path, *SMOKE, "data.batch_size=0", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ConfigError: batch_size: 0 is out of range" in done.stderr


def test_a_fault_in_the_users_code_keeps_its_trace(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from lq_plugin.recipes.mnist_cnn.model import MnistCnn\n"
        "class Mine(MnistCnn):\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        raise ZeroDivisionError('mine')\n"
    )
    done = lq_train(tmp_path, *SMOKE, "model._target_=mine.Mine", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert 'mine.py", line 4, in training_step' in done.stderr
