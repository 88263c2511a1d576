"""Commands that Ctrl+C ends say what was made, and end as every interrupted process does."""

from __future__ import annotations

import json
from pathlib import Path

import commands
import pytest

from lq_plugin.apps import command

STOPPING = """
import os, signal
from lightning.pytorch.callbacks import Callback

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it

class Stopping(Callback):
    def on_train_batch_end(self, *_):
        os.kill(os.getpid(), signal.SIGINT)
"""
RUN = ("-m", "recipe=mnist_cnn", "data.samples=48", "trainer.max_epochs=1", "callbacks.progress=null", "export=pt2")


def test_an_interrupted_sweep_ends_with_130_and_its_job_says_why(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(STOPPING)
    given = ("hydra.sweep.dir=sweep", "seed=1,2", "+callbacks.stopping._target_=own.Stopping")
    done = commands.run("lq-train", *RUN, *given, cwd=tmp_path)
    assert done.returncode == command.INTERRUPTED, done.stderr
    assert "interrupted before anything was made" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
    (failure,) = (tmp_path / "sweep").rglob("failure.json")  # the second job did not begin
    assert json.loads(failure.read_text()) == {"error": "the job was interrupted"}
    assert not list((tmp_path / "fits").glob("*.[0-9]*"))


def test_what_is_interrupted_outside_a_trainer_ends_with_130_too(capsys: pytest.CaptureFixture[str]) -> None:
    interrupt = KeyboardInterrupt()
    interrupt.add_note("interrupted after training; made: static/onnx (ok)")
    with pytest.raises(SystemExit) as ended:
        command._end_if_interrupted("lq-quantize", interrupt)
    assert ended.value.code == command.INTERRUPTED
    assert capsys.readouterr().err == "lq-quantize: interrupted after training; made: static/onnx (ok)\n"
    command._end_if_interrupted("lq-train", SystemExit("lq-train: trainer: a user error"))
