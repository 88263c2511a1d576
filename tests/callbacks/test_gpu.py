"""Training on a GPU, artifacts for the CPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny import Images, Tiny

from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, StaticQuantization, load
from lq_plugin.report.manifest import read

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(folder: Path, *callbacks: Callback, **options: Any) -> Tiny:
    L.seed_everything(7, verbose=False)
    model = Tiny()
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=2,
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        deterministic=True,
        **options,
    )
    trainer.fit(model, Images())
    return model


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_is_the_same_and_the_artifacts_run_on_the_cpu(precision: str, tmp_path: Path) -> None:
    quantizing = (
        StaticQuantization(algorithms=()),
        DynamicQuantization(algorithms=()),
        ArtifactExport(["onnx"], placement="runtime"),
        Int8Evaluation(latency=None),
    )
    alone = trained(tmp_path / "alone", precision=precision)
    model = trained(tmp_path / "with", *quantizing, precision=precision)
    states = [each.cpu().state_dict() for each in (alone, model)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    (file,) = (tmp_path / "with").rglob("manifest.json")
    image = torch.randn(4, 1, 8, 8)
    wanted = model.eval()(image)
    for entry in read(file).artifacts:
        assert entry.status == "ok", (entry.label, entry.error)
        assert entry.sqnr_db is not None
        assert entry.sqnr_db > 20
        assert entry.path is not None
        given = load(file.parent / entry.path, factory=Tiny if entry.format == "torch" else None)(image)
        assert (given - wanted).norm() < 0.1 * wanted.norm()
