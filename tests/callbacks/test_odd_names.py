"""Whatever a module calls its metrics, and whatever a logger makes of it, a finished training ends well."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from tiny import Tiny, fit

from lq_plugin import ArtifactExport, Budget, Int8Evaluation, StaticQuantization
from lq_plugin.report.leaderboard import write

CLASS, MARKUP, SCRIPT = "val/iou[/car]", "val/[red]\x1b[2J", "val/<script>alert(1)</script>"


class Odd(Tiny):
    """Logs a metric for each class, as segmentation does."""

    def evaluate(self, split: str, batch: Any) -> None:
        mean = self(batch[0]).mean()
        for name in (CLASS, MARKUP, SCRIPT):
            self.log(name.replace("val", split), mean)


class Strict(DummyLogger):
    """Refuses names with brackets, as servers for experiments do."""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        figures = kwargs.get("metrics", args[0] if args else {})
        if any(name.startswith("quantized/") for name in figures):
            raise ValueError("a name may only contain letters, digits and slashes")


def test_a_run_with_odd_metrics_is_evaluated_logged_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = Int8Evaluation(budget=Budget(CLASS, max_drop=1e9), latency=None)
    loggers = [Strict(), CSVLogger(tmp_path, name="log", version="")]
    made = fit(
        tmp_path / "run",
        Odd(),
        StaticQuantization(),
        ArtifactExport(["pt2"], str(tmp_path / "run")),
        evaluation,
        logger=loggers,
    )
    shown = capsys.readouterr().out
    for name in (CLASS, r"val/[red]\x1b[2J", SCRIPT):
        assert name in shown
    assert "\x1b[2J" not in shown
    assert "Strict could not log the figures of the artifacts" in caplog.text
    with (tmp_path / "log" / "metrics.csv").open(newline="") as file:
        assert f"quantized/static/pt2/{CLASS}" in next(csv.reader(file))
    (entry,) = json.loads((tmp_path / "run" / "quantized" / "manifest.json").read_text())["artifacts"]
    assert (entry["status"], entry["metrics"].keys() >= {CLASS, MARKUP, SCRIPT}) == ("ok", True)
    evaluation.manifest = replace(evaluation.manifest, artifacts=None)
    evaluation.teardown(made, made.lightning_module, "fit")  # whatever is wrong with the table, too
    assert "the table cannot be shown" in caplog.text
    page = write(tmp_path).read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == 1  # ours
