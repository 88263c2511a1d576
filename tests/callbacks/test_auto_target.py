"""``target="auto"`` takes the whole module where it can be captured, otherwise its largest part that can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny import CLASSES, SIDE, Images, Tiny, fit, trainer
from torch import Tensor, nn
from torch.nn import functional as F

import lq_plugin
from lq_plugin import ArtifactExport, DynamicQuantization, StaticQuantization
from lq_plugin.callbacks.quantizing import QuantizingCallback
from lq_plugin.callbacks.untrained import without_training
from lq_plugin.checkpoints import LIVE, Checkpoint, read_file
from lq_plugin.errors import ConfigError
from lq_plugin.graph import prepare
from lq_plugin.graph.capture import capture
from lq_plugin.store import Store


class Branching(Tiny):
    """Cannot be captured, but its parts can be."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x * 2 if x.sum() > 1e6 else x))


class Guarded(nn.Module):
    """Cannot be captured, but what is in it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x * 2 if x.sum() > 1e6 else x)


class Around(Tiny):
    """Its steps call two of its modules, and never its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.models, self.net = nn.ModuleList([Guarded()]), nn.Sequential(nn.Linear(8, CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(self.models[0](batch[0])), batch[1])

    def evaluate(self, split: str, batch: Any) -> None:
        self.log(f"{split}/loss", F.cross_entropy(self.net(self.models[0](batch[0])), batch[1]))


class Nothing(Tiny):
    """Nothing of it can be captured: its only layer is called in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential()
        self.head = nn.Linear(SIDE * SIDE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.head(flat * 2 if x.sum() > 1e6 else flat) + self.head(flat[:, None])[:, 0]


def static(**options: Any) -> StaticQuantization:
    return StaticQuantization(target="auto", algorithms=(), **options)


def dynamic(**options: Any) -> DynamicQuantization:
    return DynamicQuantization(target="auto", algorithms=(), **options)


def manifest(folder: Path) -> Any:
    return json.loads((folder / "quantized" / "manifest.json").read_text())


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the modules that are captured for an observation or a candidate, and not for a choice."""
    names: list[str] = []

    def named(target: nn.Module, *rest: Any) -> Any:
        names.append(type(target).__name__)
        return capture(target, *rest)

    monkeypatch.setattr(prepare, "capture", named)
    return names


def test_the_part_that_is_taken_is_observed_exported_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], captured: list[str]
) -> None:
    one, other = static(), dynamic()
    fit(tmp_path, Branching(), one, other, ArtifactExport(["onnx"]), enable_checkpointing=False)
    assert captured == ["Branching", "Sequential", "Sequential"]  # as a whole, and of each candidate at the end
    written = manifest(tmp_path)
    made = {f"{entry['candidate']}/{entry['format']}": entry["status"] for entry in written["artifacts"]}
    assert made == dict.fromkeys(["static/onnx", "dynamic/onnx", "dynamic/torch"], "not_evaluated")
    for name in ("static", "dynamic"):
        options = written["config"]["quantization"][name]
        assert options["target"] == "auto"
        assert options["taken"]["target"] == "net"
        assert 0.9 < options["taken"]["share"] < 1
        assert "forward of Branching cannot be captured" in options["taken"]["reason"]
    assert "extra_pass" not in {key for key, value in written["calibration"]["static"].items() if value is True}
    loaded = lq_plugin.load(tmp_path / "quantized/static/onnx")
    assert loaded(torch.ones(2, 1, 8, 8)).shape == (2, CLASSES)
    assert capsys.readouterr().out.replace("\n", " ").count("target='auto' takes 'net'") == 2


def test_the_whole_is_taken_where_it_can_be_captured(tmp_path: Path) -> None:
    callbacks = [static(), dynamic()]
    fit(tmp_path, Tiny(), *callbacks, enable_checkpointing=False)
    for callback in callbacks:
        assert (callback.path, callback.auto.undecided, callback.failure) == (None, False, None)
        assert callback.options()["taken"] == {"target": None, "share": 1.0, "reason": ""}


@pytest.mark.parametrize(("sanity", "make"), [(0, dynamic), (1, static)])
def test_without_training_the_same_part_is_taken_and_its_calibration_is_reused(
    sanity: int, make: Callable[[], QuantizingCallback], tmp_path: Path
) -> None:
    callback = static(checkpoint="last")
    used = fit(tmp_path, Branching(), callback, num_sanity_val_steps=sanity, max_epochs=2)
    path = Path(used.checkpoint_callback.best_model_path)
    again = make()
    later = trainer(tmp_path / "again", again)
    without_training(later, Branching(), Images(), lambda _: read_file(path), Store(tmp_path / "store"))
    assert again.auto.choice == callback.auto.choice
    assert again.path == "net"
    assert callback.candidate is not None
    assert callback.candidate.provenance.extra_pass is False


def test_a_model_whose_own_forward_is_never_called_gives_what_its_steps_call(
    tmp_path: Path, captured: list[str]
) -> None:
    one, other = static(), dynamic()
    with torch.random.fork_rng():
        fit(tmp_path, plain := Around(), enable_checkpointing=False)
    used = fit(tmp_path, Around(), one, other, enable_checkpointing=False)
    assert captured == ["Sequential"]  # of the static candidate at the end: what was found is observed
    assert one.auto.choice == other.auto.choice
    assert one.auto.choice is not None
    assert one.auto.choice.target == "models.0.encoder"
    assert 0.9 < one.auto.choice.share < 1
    assert one.candidate is not None
    assert one.candidate.provenance.extra_pass is False
    assert all("forward" not in vars(module) for module in used.lightning_module.modules())
    trained = zip(plain.parameters(), used.lightning_module.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in trained)
    again = static()
    later = trainer(tmp_path / "again", again)
    without_training(later, Around(), Images(), lambda _: Checkpoint(LIVE, 7), Store(tmp_path / "store"))
    assert again.path == one.path


def test_nothing_to_take_is_a_failure_of_a_graph_alone(tmp_path: Path) -> None:
    one, other = static(), dynamic()
    fit(tmp_path, Nothing(), one, other, ArtifactExport(["pt2"]), enable_checkpointing=False)
    assert "forward of Nothing cannot be captured" in str(one.failure)
    assert (other.path, other.failure) == (None, None)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_run_without_validation_chooses_by_a_call_in_training(tmp_path: Path) -> None:
    callback = dynamic()
    fit(tmp_path, Branching(), callback, limit_val_batches=0, enable_checkpointing=False)
    assert callback.path == "net"
    assert callback.candidate is not None


def test_a_part_that_does_not_allow_what_is_asked_stops_the_run_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="skip: 'op:bmm' matches no operator"):
        fit(tmp_path, Branching(), static(skip=["op:bmm"]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"skip": ["op:linear", "net"]}, "skip: 'net' names a part of the target"),
        ({"only": ["net.*"]}, r"only: 'net\.\*' names a part"),
        ({"dynamic_dims": {"x": [1]}}, "dynamic_dims: 'x' names a part"),
    ],
)
@pytest.mark.parametrize("callback", [StaticQuantization, DynamicQuantization])
def test_options_that_name_something_in_the_target_need_its_name(
    callback: type[QuantizingCallback], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        callback(target="auto", **options)


def test_one_failed_capture_is_told_in_full_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callbacks: list[Callback] = [StaticQuantization(), StaticQuantization("again"), DynamicQuantization()]
    fit(tmp_path, Nothing(), *callbacks, ArtifactExport(["onnx", "openvino"]), enable_checkpointing=False)
    told = [record.getMessage() for record in caplog.records if "captured" in record.getMessage()]
    assert len([text for text in told if "cannot be captured by torch.export" in text]) == 1
    assert "'again' of StaticQuantization cannot be made; training continues, with the other candidates. The" in (
        caplog.text
    )
    for name in ("onnx", "openvino"):
        assert f"dynamic/{name} failed: no graph could be captured, see above." in told
    errors = [entry["error"] for entry in manifest(tmp_path)["artifacts"] if entry["format"] != "torch"]
    assert len(errors) == 6
    assert all("What you can do" in error for error in errors)
