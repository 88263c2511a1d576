"""Sweeps train once, in turn and in parallel; a cached fit is reused by later runs of the same training."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import commands
import pytest

from lq_plugin import find_results
from lq_plugin.report.leaderboard import leaderboard

QUICK = ("recipe=mnist_cnn", "data.samples=30", "trainer.max_epochs=1", "callbacks.progress=null", "export=pt2")
PLAIN = ("quantization=none", "export=none", "evaluation=none")
UNTIMED = ("callbacks.evaluation.latency=null",)
TIMED = (
    "callbacks.evaluation.latency.rounds=1",
    "callbacks.evaluation.latency.seconds=0.01",
    "callbacks.export.placement=runtime",
)
SWEEP = (
    *("-m", "model._target_=mine.Mine", "algorithms=none"),
    *("observer=minmax,percentile", "callbacks.static.weight_granularity=per_channel,per_tensor"),
)
# Kills the process of a sweep while it calibrates or evaluates, once so many jobs have finished.
KILLED = """
import os, pathlib, signal
from lq_plugin.recipes.mnist_cnn.model import MnistCnn
class Mine(MnistCnn):
    def validation_step(self, batch, batch_idx):
        finished = len(list(pathlib.Path("fits").glob("*.store/jobs/*")))
        if str(finished) == os.environ.get("KILL"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().validation_step(batch, batch_idx)
"""
Whole = tuple[Path, subprocess.CompletedProcess[str]]


def run(
    folder: Path, *arguments: str, command: str = "lq-train", evaluated: tuple[str, ...] = UNTIMED, **options: Any
) -> subprocess.CompletedProcess[str]:
    flags = [argument for argument in arguments if argument == "-m"]  # has to come first
    overrides = [argument for argument in arguments if argument not in flags]
    return commands.run(command, *flags, *QUICK, *evaluated, *overrides, cwd=folder, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A sweep that nobody interrupts: its working folder, and how it ended."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "mine.py").write_text(KILLED)
    done = run(folder, *SWEEP)
    assert done.returncode == 0, done.stderr
    return folder, done


def board(folder: Path) -> dict[str, list[dict[str, Any]]]:
    (file,) = folder.glob("multirun/*/*/leaderboard.json")
    return dict(json.loads(file.read_text()))


def without_paths(file: Path) -> Any:
    """What a leaderboard says, without where its runs were."""
    return json.loads(file.read_text().replace(str(file.parent), ""))


def count(done: subprocess.CompletedProcess[str], text: str) -> int:
    return sum(line.startswith(f"lq_plugin: {text}") for line in done.stdout.splitlines())


def test_a_sweep_fits_once_and_calibrates_once_for_each_observer(whole: Whole) -> None:
    folder, done = whole
    assert (count(done, "fitting"), count(done, "the cached fit")) == (1, 3)
    assert count(done, "calibrating") == 1  # minmax was observed while the model was fitted
    assert count(done, "reusing the calibration of 'static'") == 2
    assert len(board(folder)["artifacts"]) == 4
    assert not board(folder)["failed"]


def test_a_killed_sweep_that_is_started_again_skips_what_finished(whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(KILLED)
    first, second = (f"hydra.sweep.dir=multirun/2026-01-0{day}/12-00-00" for day in (1, 2))
    killed = run(tmp_path, *SWEEP, first, environment={"KILL": "2"})
    assert killed.returncode == -signal.SIGKILL
    left = set(tmp_path.glob("fits/*.store/jobs/*"))
    done = run(tmp_path, *SWEEP, second)
    assert done.returncode == 0, done.stderr
    assert count(done, "this job finished earlier") == len(left) == 2
    assert (count(done, "fitting"), count(done, "the cached fit")) == (0, 2)
    records = set(tmp_path.glob("fits/*.store/jobs/*"))
    assert len(records) == 4
    assert left < records
    (board_file,) = tmp_path.glob("multirun/2026-01-02/*/leaderboard.json")
    assert without_paths(board_file) == without_paths(*whole[0].glob("multirun/*/*/leaderboard.json"))
    assert len(find_results(board_file.parent)) == 4
    both = leaderboard(tmp_path / "multirun")
    assert [row.run for row in both.artifacts] == [f"2026-01-02/12-00-00/{job}" for job in range(4)]
    assert both.failed == ()
    assert "its results: 2026-01-01/12-00-00/0 (now 2026-01-02/12-00-00/0), 2026-01-01/12-00-00/1" in str(both.notes)


def test_a_fit_is_reused_without_what_trained_it_and_without_unpickling(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import functools, torch\nfrom lq_plugin.recipes.mnist_cnn.model import MnistCnn\n"
        "class Mine(MnistCnn):\n    def __init__(self, optimizer, **options):\n        super().__init__(**options)\n"
        "        self.save_hyperparameters()\n"
    )
    optimizer = "{_target_: torch.optim.Adam, _partial_: true, lr: 0.01}"
    done = run(
        tmp_path,
        "-m",
        "model._target_=mine.Mine",
        f"+model.optimizer={optimizer}",
        "+callbacks.swa={_target_: lightning.pytorch.callbacks.StochasticWeightAveraging, swa_lrs: 0.01}",
        "trainer.num_sanity_val_steps=0",
        "quantization=static,dynamic",
        "observer=minmax",  # means nothing to dynamic
    )
    assert done.returncode == 0, done.stderr
    assert (count(done, "fitting"), count(done, "the cached fit")) == (1, 1)
    assert count(done, "this job of the sweep has no static quantization, so observer= is ignored") == 1
    assert not board(tmp_path)["failed"]
    states = {f"{row['candidate']}/{row['format']}": row["status"] for row in board(tmp_path)["artifacts"]}
    assert states.pop("dynamic/pt2") == "unsupported"
    assert states.keys() == {"static/pt2", "dynamic/torch"}
    assert set(states.values()) <= {"ok", "over_budget"}


def test_what_a_job_reuses_is_what_it_would_have_made(tmp_path: Path) -> None:
    manifests = []
    for run_folder in ("first", "second"):
        done = run(tmp_path, f"hydra.run.dir={run_folder}", "export=onnx")  # the same bytes every time
        assert done.returncode == 0, done.stderr
        manifests.append(json.loads((tmp_path / run_folder / "quantized" / "manifest.json").read_text()))
    first, second = manifests
    for part in ("calibration", "budget"):
        assert first[part] == second[part]
    assert first["fp32"]["metrics"] == second["fp32"]["metrics"]
    for one, other in zip(first["artifacts"], second["artifacts"], strict=True):
        assert (one["metrics"], one["sha256"]) == (other["metrics"], other["sha256"])


def test_parallel_jobs_share_one_fit_and_a_failure_is_listed(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "sweep=joblib", "callbacks.static.skip=[],[net.14],[nonsense]")
    assert done.returncode == 1
    assert "skip: 'nonsense' is unknown" in done.stderr
    assert count(done, "fitting") == 1
    made = board(tmp_path)
    assert len(made["artifacts"]) == 2
    (failed,) = made["failed"]
    assert "skip: 'nonsense' is unknown" in str(failed["error"])


def test_a_job_that_is_killed_is_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, signal\nfrom lq_plugin.recipes.mnist_cnn.model import MnistCnn\n"
        "class Mine(MnistCnn):\n    def training_step(self, batch, batch_idx):\n"
        "        if self.hparams.width == 5:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().training_step(batch, batch_idx)\n"
    )
    killed = run(tmp_path, "-m", "model._target_=mine.Mine", "sweep=joblib", "model.width=5")
    assert killed.returncode != 0
    (failed,) = board(tmp_path)["failed"]
    assert failed["error"] == "the job did not finish; most likely its process was killed"


def test_nothing_that_could_be_made_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, "quantization=dynamic", "callbacks.dynamic.skip=['*']")
    assert done.returncode == 1
    assert "lq-train: target: nothing in it can be quantized" in done.stderr


def test_optuna_optimizes_two_objectives_within_the_budget(tmp_path: Path) -> None:
    options = ("-m", "sweep=optuna", "hydra.sweeper.n_trials=2", "export=onnx")
    done = run(tmp_path, *options, evaluated=TIMED)
    assert done.returncode == 0, done.stderr
    assert count(done, "fitting") == 1
    assert (tmp_path / "fits" / "studies.journal").is_file()
    best = [line for line in done.stdout.splitlines() if line.startswith("lq_plugin:   trial")]
    assert re.match(r".*trial \d: metric [\d.]+, latency_ms [\d.]+, over_budget -?[\d.]+ with observer=minmax", best[0])
    first, second = (row["latency_ms"] for row in board(tmp_path)["artifacts"])
    assert min(first, second) > 0
    (gone,) = tmp_path.glob("multirun/*/*/0")
    shutil.rmtree(gone)
    again = run(tmp_path, *options, "hydra.sweep.dir=again", evaluated=TIMED)
    assert again.returncode == 0, again.stderr
    assert count(again, f"1 earlier job of this sweep cannot be listed, because {gone} is gone") == 1
    resumed = json.loads((tmp_path / "again" / "leaderboard.json").read_text())["artifacts"]
    assert [row["latency_ms"] for row in resumed] == [second]


def test_a_sweep_for_the_worst_ends_before_training(tmp_path: Path) -> None:
    direction = "hydra.sweeper.direction=[minimize,minimize]"
    done = run(tmp_path, "-m", "sweep=optuna", "hydra.sweeper.n_trials=2", direction)
    assert done.returncode == 1
    said = "hydra.sweeper.direction: 'minimize' for 'metric', but more val/acc is better"
    assert f"lq-train: every job of the sweep failed, the last one with: {said}" in done.stderr
    assert count(done, "fit") == 0


def test_jobs_run_in_processes_of_a_cluster(tmp_path: Path) -> None:
    """Those of a Ray cluster, which takes long to start, are in ``tests/long``."""
    done = run(tmp_path, "-m", "sweep=submitit_local", "observer=minmax,percentile")
    assert done.returncode == 0, done.stderr
    assert len(board(tmp_path)["artifacts"]) == 2
    assert len(list(tmp_path.glob("fits/*/fit.json"))) == 1


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_checkpoint_is_quantized_without_training(calibrated: bool, tmp_path: Path) -> None:
    trained = run(tmp_path, "model.width=16", *(() if calibrated else PLAIN), evaluated=UNTIMED * calibrated)
    assert trained.returncode == 0, trained.stderr
    (checkpoint,) = tmp_path.glob("fits/*/live.ckpt")
    done = run(tmp_path, f"ckpt_path={checkpoint}", "hydra.run.dir=made", command="lq-quantize")
    assert done.returncode == 0, done.stderr
    assert count(done, "calibrating") == (0 if calibrated else 1)
    manifest = json.loads((tmp_path / "made" / "quantized" / "manifest.json").read_text())
    assert manifest["calibration"]["static"]["extra_pass"] is not calibrated
    assert [entry["status"] in ("ok", "over_budget") for entry in manifest["artifacts"]] == [True]
    assert manifest["fp32"]["size_bytes"] < 500_000  # the width is the checkpoint's
    (logged,) = csv.DictReader((tmp_path / "made" / "metrics.csv").read_text().splitlines())
    known = {f"quantized/static/pt2/{name}": value for name, value in manifest["artifacts"][0]["metrics"].items()}
    assert {name: float(logged[name]) for name in known} == pytest.approx(known)
