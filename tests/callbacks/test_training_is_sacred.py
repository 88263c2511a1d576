"""A run with the callbacks equals, bit for bit, the same run without them."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from tiny import Images, Tiny, fit
from torch import Tensor

from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, Latency, StaticQuantization

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "sanity check": ("pt2", {"max_epochs": 2}),
    "no sanity check": ("onnx", {"num_sanity_val_steps": 0, "max_epochs": 2}),
    "validation inside the epoch": ("openvino", {"val_check_interval": 2}),
    "gradient accumulation": ("pt2", {"accumulate_grad_batches": 2}),
    "bf16-mixed": ("pt2", {"precision": "bf16-mixed"}),
}
AVERAGING: dict[str, Callable[[], Callback]] = {
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
    "ema": lambda: EMAWeightAveraging(decay=0.9),
}


class Metrics(Callback):
    """Keeps every metric of every step and of every validation."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(dict(trainer.callback_metrics))

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(dict(trainer.callback_metrics))


def run(folder: Path, callbacks: Sequence[Callback], seed: int = 7, **options: Any) -> dict[str, Any]:
    """Train, and return everything that the callbacks must leave as it is."""
    L.seed_everything(seed, verbose=False)
    model, metrics = Tiny(), Metrics()
    kept = ModelCheckpoint(folder / "kept", save_top_k=-1, filename="{step}", save_last=True)
    trainer = fit(folder, model, *callbacks, metrics, kept, logger=CSVLogger(folder, "", ""), data=Images(), **options)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    return {
        "weights": model.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "metrics": metrics.seen,
        "rows": [{k: v for k, v in row.items() if v and not k.startswith("quantized/")} for row in rows],
        "random states": states,
        "training mode": model.training,
        "checkpoints": {file.name: checkpoint(file) for file in sorted((folder / "kept").iterdir())},
    }


def checkpoint(file: Path) -> dict[str, Any]:
    content = torch.load(file, weights_only=True)
    del content["callbacks"]
    return dict(content)


def assert_same(left: Any, right: Any, where: str = "run") -> None:
    assert type(left) is type(right), where
    if isinstance(left, Mapping):
        assert list(left) == list(right), where
        for key in left:
            assert_same(left[key], right[key], f"{where}[{key!r}]")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(left, Tensor | np.ndarray):
        assert left.dtype == right.dtype, where
        assert bool((left == right).all()), where
    else:
        assert left == right, where


@pytest.mark.parametrize(("format_name", "options"), OPTIONS.values(), ids=OPTIONS)
def test_a_run_with_the_callbacks_is_bit_identical_to_one_without(
    format_name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    plain = run(tmp_path / "plain", [], **options)
    callbacks = [
        StaticQuantization(),
        DynamicQuantization(),
        ArtifactExport([format_name]),
        Int8Evaluation(latency=None),
    ]
    quantized = run(tmp_path / "quantized", callbacks, **options)
    made = quantized["rows"].pop()  # the row of the INT8 figures, which is empty without them
    assert not made.keys() - {"step", "epoch"}
    assert (callbacks[0].error, callbacks[1].error) == (None, None)
    assert_same(plain, quantized)


@pytest.mark.filterwarnings("ignore:Swapping scheduler")
@pytest.mark.parametrize("average", AVERAGING.values(), ids=AVERAGING)
def test_weights_that_are_averaged_are_averaged_as_without(average: Callable[[], Callback], tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", [average()], max_epochs=3)
    static, evaluation = StaticQuantization(), Int8Evaluation(latency=None)
    callbacks = [average(), static, DynamicQuantization(), ArtifactExport(["pt2"]), evaluation]
    quantized = run(tmp_path / "quantized", callbacks, max_epochs=3)
    quantized["rows"].pop()
    assert static.error is None
    assert_same(plain, quantized)


def test_measuring_latency_changes_nothing_either(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", [])
    evaluation = Int8Evaluation(latency=Latency(rounds=1, seconds=0.01))
    callbacks = [evaluation, ArtifactExport(["onnx"], placement="runtime"), StaticQuantization()]
    quantized = run(tmp_path / "quantized", callbacks)
    quantized["rows"].pop()
    assert_same(plain, quantized)
    assert evaluation.manifest is not None
    (entry,) = evaluation.manifest.artifacts
    assert (entry.error, entry.status) == (None, "ok")
    assert entry.median is not None


def test_the_comparison_would_see_a_difference(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", [], seed=7), run(tmp_path / "other", [], seed=8)
    for part in ("weights", "optimizer", "metrics", "rows", "random states", "checkpoints"):
        with pytest.raises(AssertionError, match=part):
            assert_same(one[part], other[part], part)
