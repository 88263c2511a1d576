"""Before training, what a model does not allow stops one candidate and no other; a user's mistake stops the run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from tiny import CLASSES, SIDE, Tiny, fit
from torch import Tensor, nn

from lq_plugin import ArtifactExport, DynamicQuantization, StaticQuantization
from lq_plugin.callbacks.quantizing import QuantizingCallback
from lq_plugin.callbacks.sanity import check_strategy
from lq_plugin.errors import ConfigError, UnsupportedError


class Branching(Tiny):
    """Cannot be captured: what it does depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * 2 if x.sum() > 1e6 else x)


class Convolutional(Tiny):
    """Has nothing that dynamic quantization covers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, CLASSES, SIDE), nn.Flatten())


class Around(Tiny):
    """Its validation goes around its own forward."""

    def evaluate(self, split: str, batch: Any) -> None:
        self.log(f"{split}/mean", self.net(batch[0]).mean())


class Neither(Branching):
    """Cannot be captured, and has nothing that dynamic quantization covers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, CLASSES, SIDE), nn.Flatten())


class Counting(Callback):
    """Counts the training batches."""

    batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1


def fitted(folder: Path, model: Tiny, *callbacks: Callback, **options: Any) -> dict[str, list[tuple[str, str]]]:
    """Status and error of every artifact, by the candidate's name."""
    counting = Counting()
    fit(folder, model, *callbacks, ArtifactExport(["pt2"]), counting, enable_checkpointing=False, **options)
    assert counting.batches == 3
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in json.loads((folder / "quantized" / "manifest.json").read_text())["artifacts"]:
        found.setdefault(entry["candidate"], []).append((entry["status"], entry["error"]))
    return found


CASES: dict[str, tuple[type[Tiny], QuantizingCallback, QuantizingCallback, str]] = {
    "static cannot capture": (
        Branching,
        StaticQuantization(),
        DynamicQuantization(),
        "CaptureError: target: .*cannot be captured",
    ),
    "dynamic finds nothing": (
        Convolutional,
        DynamicQuantization(),
        StaticQuantization(),
        "UnsupportedError: target: nothing in it can be quantized",
    ),
    "static is never called": (
        Around,
        StaticQuantization(),
        DynamicQuantization(target="net"),
        "UnsupportedError: target: the forward of 'Around' is never called in validation_step",
    ),
    "dynamic is never called": (
        Around,
        DynamicQuantization(),
        StaticQuantization(target="net"),
        "UnsupportedError: target: the forward of 'Around' is never called in validation_step",
    ),
}


@pytest.mark.parametrize(("model", "unable", "able", "reason"), CASES.values(), ids=CASES)
def test_a_candidate_that_the_model_does_not_allow_stops_no_other(
    model: type[Tiny],
    unable: QuantizingCallback,
    able: QuantizingCallback,
    reason: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    order = [unable, able] if model is Around else [able, unable]
    made = fitted(tmp_path, model(), *order)
    text = reason.partition(": ")[2]
    statuses = {status for status, error in made[unable.name] if re.search(text, error)}
    assert statuses == {"unsupported" if reason.startswith("UnsupportedError") else "failed"}
    assert unable.error is not None
    assert len([record for record in caplog.records if unable.error in record.getMessage()]) == 1
    assert re.match(reason, unable.error)
    assert ("not_evaluated", None) in made[able.name]
    assert able.candidate is not None
    assert unable.candidate is None


def test_the_run_stops_where_no_callback_can_make_a_candidate(tmp_path: Path) -> None:
    counting = Counting()
    callbacks = [StaticQuantization(), DynamicQuantization(), ArtifactExport(["pt2"]), counting]
    said = "no callback of this Trainer can make a candidate .* 'static': target: .* 'dynamic': target: nothing in it"
    with pytest.raises(UnsupportedError, match=f"(?s){said}"):
        fit(tmp_path, Neither(), *callbacks)
    assert counting.batches == 0


@pytest.mark.parametrize("sanity", [0, 2])
def test_what_a_layer_list_tells_needs_no_sanity_check(sanity: int, tmp_path: Path) -> None:
    counting = Counting()
    with pytest.raises(UnsupportedError, match="target: nothing in it can be quantized"):
        fit(tmp_path, Convolutional(), DynamicQuantization(), counting, num_sanity_val_steps=sanity)
    assert counting.batches == 0


def test_without_a_sanity_check_the_other_candidate_is_made_too(tmp_path: Path) -> None:
    made = fitted(tmp_path, Convolutional(), StaticQuantization(), DynamicQuantization(), num_sanity_val_steps=0)
    assert made["static"] == [("not_evaluated", None)]
    assert [status for status, error in made["dynamic"] if "nothing in it can be quantized" in error] == [
        "unsupported"
    ] * 2


def test_a_users_mistake_stops_the_run_whatever_the_other_callbacks_can_make(tmp_path: Path) -> None:
    counting = Counting()
    with pytest.raises(ConfigError, match="skip: 'op:bmm' matches no operator"):
        fit(tmp_path, Tiny(), StaticQuantization(skip=["op:bmm"]), DynamicQuantization(), counting)
    assert counting.batches == 0


def test_the_same_callbacks_serve_a_fit_of_a_model_that_they_can_quantize(tmp_path: Path) -> None:
    static, dynamic = StaticQuantization(), DynamicQuantization()
    fit(tmp_path, Branching(), static, dynamic, enable_checkpointing=False)
    assert (static.candidate is None, dynamic.candidate is None) == (True, False)
    fit(tmp_path, Tiny(), static, dynamic, enable_checkpointing=False)
    assert (static.candidate is None, dynamic.candidate is None) == (False, False)


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Says what the one of Lightning says, which cannot be made without the package deepspeed."""

    zero_stage_3 = True


def test_strategies_that_split_parameters_are_known_by_name() -> None:
    with pytest.raises(ConfigError, match=r"FSDPStrategy splits .* run lq-quantize .*pytorch\.utilities\.consolidate"):
        check_strategy(FSDPStrategy(), "StaticQuantization")
    strategy = type("Mine", (DeepSpeedStrategy,), {})()
    with pytest.raises(ConfigError, match=r"Mine splits .*convert_zero_checkpoint_to_fp32_state_dict"):
        check_strategy(strategy, "StaticQuantization")
    strategy.zero_stage_3 = False
    check_strategy(strategy, "StaticQuantization")
