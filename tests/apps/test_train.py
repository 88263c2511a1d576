"""lq-train as a user runs it: a process of its own, in an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import commands
import pytest
from idx import write_images

import lq_plugin.conf

RECIPES = sorted(file.stem for file in Path(str(resources.files(lq_plugin.conf))).glob("recipe/*.yaml"))
SMOKE = ("recipe=mnist_cnn", "data.samples=96", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")


def lq_train(folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return commands.run("lq-train", *overrides, cwd=folder, environment=environment)


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "quantized" / "manifest.json").read_text()))


def test_it_shows_its_configuration(tmp_path: Path) -> None:
    done = lq_train(tmp_path, "--cfg", "job")
    assert (done.returncode, done.stderr) == (0, "")
    assert "lq_plugin.StaticQuantization" in done.stdout


def test_its_help_imports_neither_torch_nor_lightning(tmp_path: Path) -> None:
    script = (
        "import atexit, sys\nfrom lq_plugin.apps.entry import lq_train\n"
        "atexit.register(lambda: print(*{'torch', 'lightning', 'numpy'} & sys.modules.keys(), file=sys.stderr))\n"
        "sys.argv = ['lq-train', '--help']\nlq_train()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "\n")
    assert "recipe=mnist_cnn" in done.stdout
    assert done.stdout == lq_train(tmp_path, "--help").stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_leaves_artifacts_and_a_manifest(recipe: str, tmp_path: Path) -> None:
    samples = 96 if recipe in ("mnist_cnn", "fashion_mobile") else 30  # too few for algorithms
    quick = [f"data.samples={samples}", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
    if recipe.startswith("mnist_vit"):
        quick.append("model.depth=1")
    if recipe not in ("mnist_cnn", "temps_lstm"):  # these two have every format, with both methods
        quick.append("export=onnx")
    if recipe == "fashion_mobile":  # whose data come with no Python package
        quick.append(f"data.folder={write_images(tmp_path, train=192, test=96)}")
    done = lq_train(tmp_path, f"recipe={recipe}", *quick, "callbacks.evaluation.latency=null", "hydra.run.dir=run")
    assert (done.returncode, done.stderr) == (0, "")
    made = manifest(tmp_path / "run")
    assert made["artifacts"]
    for artifact in made["artifacts"]:
        files = [tmp_path / "run" / "quantized" / str(artifact["path"]) / name for name in artifact["sha256"]]
        assert all(file.is_file() for file in files)
        assert artifact["status"] in (("ok", "over_budget") if files else ("unsupported",))
    assert made["config"]["run"]["data"]["samples"] == samples
    assert {step["outcome"] for step in made["steps"]} <= ({"kept", "refused"} if samples == 96 else {"not_tried"})
    assert list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


TELLING = """
import os
from lightning.pytorch.loggers import Logger

class Telling(Logger):  # Lightning's own loggers do nothing in other processes, whoever calls them
    name = version = ""

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step):
        with open("sent", "a") as file:
            file.writelines(f"{os.environ.get('LOCAL_RANK', '0')} {name}\\n" for name in metrics)
"""


def test_two_processes_train_together(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(TELLING)
    # Lightning starts the second process with this one's command line, so this one is started by it too.
    options = (*SMOKE, "trainer=ddp_cpu", "export=pt2", "callbacks.evaluation.latency=null", "hydra.run.dir=run")
    options = (*options, "logger=none", "+logger.telling._target_=own.Telling")
    command = [sys.executable, "-m", "lq_plugin.apps.train", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    made = manifest(tmp_path / "run")
    assert made["calibration"]["static"]["samples"] == 96
    (artifact,) = made["artifacts"]
    assert artifact["status"] in ("ok", "over_budget")
    sent = [line.split() for line in (tmp_path / "sent").read_text().splitlines() if " quantized/" in line]
    assert sent == [["0", f"quantized/static/pt2/{name}"] for name in (*artifact["metrics"], "size_bytes", "sqnr_db")]


MISTAKES = {
    "callbacks.static.smaples=3": "callbacks.static.smaples: there is no such option. Did you mean 'samples'?",
    "callbacks.static.samples=many": "Error merging override callbacks.static.samples=many: Value 'many'",
    "callbacks.evaluation.budget.max_loss=0.1": "callbacks.evaluation.budget.max_loss: this option was renamed. Write "
    "callbacks.evaluation.budget.max_drop=VALUE.",
    "callbacks.static.observer=minmx": "callbacks.static.observer: 'minmx' is unknown. Did you mean 'minmax'?",
    "callbacks.static.skip=head": "str is not a ListConfig, list or tuple. Write a list, such as [head,op:add].",
    "observer=minmx": "Could not find 'observer/minmx'",
    "trainer.accelerator=gpo": "trainer: You selected an invalid accelerator name: `accelerator='gpo'`.",
    "export=null": "Config group override must be a string or a list.",
}


@pytest.mark.parametrize(("mistake", "said"), MISTAKES.items())
def test_a_mistake_is_one_line_and_nothing_is_trained(mistake: str, said: str, tmp_path: Path) -> None:
    done = lq_train(tmp_path, *SMOKE, mistake)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("lq-train: ")
    assert said in line
    assert not list(tmp_path.rglob("*.ckpt"))


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
    done = lq_train(tmp_path, *SMOKE, "model._target_=mine.Mine")
    assert done.returncode == 1
    assert 'mine.py", line 4, in training_step' in done.stderr
