"""Models with weights of half or double precision are quantized as a float32 copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tiny import Images, Tiny, fit
from torch import Tensor, nn

import lq_plugin
from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, Scheme, StaticQuantization
from lq_plugin.graph import precision
from lq_plugin.graph.precision import float32_copy, in_float32


def test_a_float32_module_stays_itself() -> None:
    layer = nn.Linear(2, 2)
    assert float32_copy(layer) is layer


def test_a_double_layer_in_a_float32_model_is_there_on_purpose() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    assert float32_copy(model) is model
    assert float32_copy(model.double()) is not model


def test_a_copy_casts_what_it_is_given() -> None:
    layer = nn.Linear(2, 2).bfloat16()
    made = float32_copy(layer)
    assert layer.weight.dtype == torch.bfloat16
    assert made(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float32
    assert in_float32({"ids": torch.ones(1, dtype=torch.int64)})["ids"].dtype == torch.int64


def _fitted(folder: Path, batches: int) -> None:
    callbacks = [StaticQuantization(algorithms=[]), DynamicQuantization(algorithms=[])]
    fit(folder, Tiny(), *callbacks, data=Images(val_samples=8 * batches), enable_checkpointing=False)


def _quantized(folder: Path, batches: int) -> None:
    for method in ("static", "dynamic"):
        lq_plugin.quantize(nn.Linear(2, 2), [torch.ones(3, 2)] * batches, Scheme(method, algorithms=[]))


@pytest.mark.parametrize("run", [_fitted, _quantized])
def test_weights_are_looked_at_for_a_pass_and_not_for_each_call(
    run: Callable[[Path, int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts = []
    for batches in (2, 5):
        with monkeypatch.context() as patch:
            looked = Mock(side_effect=precision._dtypes)
            patch.setattr(precision, "_dtypes", looked)
            run(tmp_path / str(batches), batches)
        counts.append(looked.call_count)
    assert counts[0] == counts[1] > 0


class Checking(Tiny):
    """Checks its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.isfinite().all():
            raise ValueError("x is not finite")
        return self.net(x)


WEIGHTS = {"bf16-true": "bfloat16", "64-true": "float64"}


@pytest.mark.parametrize("precision", WEIGHTS)
def test_a_run_of_another_precision_ends_with_artifacts(precision: Any, tmp_path: Path) -> None:
    export = ArtifactExport(formats=["onnx", "torch"])
    callbacks = [StaticQuantization(algorithms=[]), DynamicQuantization(), export, Int8Evaluation(latency=None)]
    with_callbacks, without = Checking(), Checking()
    without.load_state_dict(with_callbacks.state_dict())
    for model, attached in ((with_callbacks, callbacks), (without, ())):
        torch.manual_seed(0)
        fit(tmp_path / str(len(attached)), model, *attached, precision=precision)
    for name, tensor in without.state_dict().items():
        assert torch.equal(tensor, with_callbacks.state_dict()[name]), name
    assert export.manifest is not None
    made = {entry.label: entry for entry in export.manifest.artifacts if entry.status != "unsupported"}
    assert made.keys() == {"static/onnx", "dynamic/onnx", "dynamic/torch"}
    for entry in made.values():
        assert entry.error is None
        assert (entry.sqnr_db or 0) > 15
    assert export.manifest.calibration["static"]["extra_pass"] is False
    for name in ("static", "dynamic"):
        of_weights, of_graph = export.manifest.notes[name]
        assert of_weights == f"Checking has weights in {WEIGHTS[precision]}; a float32 copy of it is quantized"
        assert of_graph.startswith(f"the check of data in {__file__}:")
