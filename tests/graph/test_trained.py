"""Models quantized at the end of a real fit, wherever their layers are and however they are trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import lightning as L
import onnx
import pytest
import torch
from zoo.trained import LayersOnTheModule, LayersUnderNet, loader

import lq_plugin
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise

LEAST_DB = 30  # seen: 39 to 44
ON_MODULE = {"conv2d": 2, "mean": 1, "linear": 1}
UNDER_NET = {"conv2d": 6, "max_pool2d": 1, "add": 2, "adaptive_avg_pool2d": 1, "linear": 1}


@pytest.mark.parametrize(
    ("module", "target", "precision", "compiled", "expected"),
    [
        pytest.param(LayersOnTheModule, None, "32-true", False, ON_MODULE, id="layers_on_the_module"),
        pytest.param(LayersUnderNet, None, "32-true", False, UNDER_NET, id="layers_under_net"),
        pytest.param(LayersUnderNet, "net", "bf16-mixed", False, UNDER_NET, id="bf16_mixed_with_target"),
        pytest.param(LayersOnTheModule, None, "32-true", True, ON_MODULE, id="compiled"),
    ],
)
def test_fit_ends_with_a_faithful_onnx_artifact(
    module: type[L.LightningModule],
    target: str | None,
    precision: str,
    compiled: bool,
    expected: dict[str, int],
    tmp_path: Path,
) -> None:
    L.seed_everything(0, verbose=False)
    model = module()
    static = lq_plugin.StaticQuantization(target=target, checkpoint="live", algorithms=[])
    export = lq_plugin.ArtifactExport(formats=["onnx"])
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision=precision,
        logger=False,
        callbacks=[static, export],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trained = torch.compile(model, backend="eager") if compiled else model
    trainer.fit(trained, loader(), loader())

    artifact = tmp_path / "quantized" / "static" / "onnx"
    operators = Counter(node.op_type for node in onnx.load(artifact / "model.onnx").graph.node)
    assert static.candidate is not None
    placement = static.candidate.placed("onnxruntime")
    assert Counter(op.op for op in placement.quantized.values()) == expected
    assert operators["QuantizeLinear"] >= len(set(placement.scales.values()))
    loaded, metric = lq_plugin.load(artifact), SignalToQuantizationNoise()
    model.eval()
    for images, _ in loader():
        with torch.no_grad():
            metric.update(loaded(images), model(images))
    assert metric.compute() > LEAST_DB
