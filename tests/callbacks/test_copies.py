"""Callbacks may be copied and pickled in every hook, and by a module that keeps them, without anybody noticing."""

from __future__ import annotations

import copy
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from tiny import Tiny, fit, trainer
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from lq_plugin import ArtifactExport, DynamicQuantization, Int8Evaluation, StaticQuantization, find_results, load
from lq_plugin.graph.copying import detached_copy
from lq_plugin.graph.structure import unflatten
from lq_plugin.targets import replaced_forward

sys.path.insert(0, str(Path(__file__).parent))
from test_training_is_sacred import assert_same, run

OURS = (StaticQuantization, DynamicQuantization, ArtifactExport, Int8Evaluation)
HOOKS = [name for name in dir(Callback) if name.startswith("on_") or name in ("setup", "teardown")]


def callbacks(format_name: str = "onnx") -> Any:
    metrics = {"accuracy": MulticlassAccuracy(3, average="micro")}
    evaluation = Int8Evaluation(["validate"], latency=None, metrics=metrics)
    return [StaticQuantization(), DynamicQuantization(), ArtifactExport([format_name]), evaluation]


class Copying(Callback):
    """Copies and pickles the others in every hook, and breaks off what the copies might be doing."""

    def __init__(self) -> None:
        self.copied: Counter[str] = Counter()
        self.observing: Counter[str] = Counter()

    def look(self, hook: str, trainer: Any, model: Any) -> None:
        self.copied[hook] += 1
        self.observing[hook] += "forward" in vars(model)
        for callback in trainer.callbacks:
            if isinstance(callback, OURS):
                for made in (copy.deepcopy(callback), copy.copy(callback), pickle.loads(pickle.dumps(callback))):
                    made.on_exception(trainer, model, RuntimeError("of the copy"))
                    made.teardown(trainer, model, "validate")

    def __getattribute__(self, name: str) -> Any:
        if name in HOOKS:
            return lambda trainer, model, *_, **__: self.look(name, trainer, model)
        return super().__getattribute__(name)


def artifacts(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("model.onnx"))}


def test_copies_made_in_every_hook_change_nothing(tmp_path: Path) -> None:
    left, copying = callbacks(), Copying()
    alone = run(tmp_path / "alone", left)
    copied = run(tmp_path / "copied", [copying, *(again := callbacks()), copying])
    assert_same(alone, copied)
    assert len(artifacts(tmp_path / "alone")) == 2
    assert artifacts(tmp_path / "alone") == artifacts(tmp_path / "copied")
    assert [callback.error for callback in again[:2]] == [None, None]
    assert_same(left[0].calibration.state_dict(), again[0].calibration.state_dict())
    assert copying.observing["on_validation_batch_start"] > copying.observing["on_train_epoch_end"] == 0
    assert {"setup", "on_sanity_check_start", "on_validation_end", "on_fit_end", "teardown"} < set(copying.copied)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
@pytest.mark.parametrize("kind", [StaticQuantization, DynamicQuantization])
def test_a_copy_made_while_the_original_observes_does_neither_observe_nor_end_it(
    kind: Any, how: Any, tmp_path: Path
) -> None:
    made: list[Any] = []

    class Midway(Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if "forward" in vars(pl_module):
                shadow = pl_module.forward
                made.append(how(callback))
                made[-1].on_exception(trainer, pl_module, RuntimeError())
                assert pl_module.__dict__["forward"] is shadow
                pl_module(torch.zeros(1, 1, 8, 8, device=pl_module.device))

    callback = kind()
    fit(tmp_path, Tiny(), callback, Midway(), num_sanity_val_steps=0)
    assert callback.error is None
    assert made
    for one in made:
        if kind is StaticQuantization:
            assert one.calibration is None
            assert one._observation is None
        assert one.candidate is None


def test_a_copy_that_takes_over_between_two_passes_learns_on_its_own(tmp_path: Path) -> None:
    class Replacing(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.callbacks = [copy.deepcopy(one) if isinstance(one, OURS) else one for one in trainer.callbacks]

    given = StaticQuantization(), ArtifactExport(["pt2"])
    made = fit(tmp_path, Tiny(), *given, Replacing(), max_epochs=2)
    worked: Any = made.callbacks[:2]
    assert given[0].candidate is given[1].manifest is None
    assert worked[0].error is None
    assert not worked[0].candidate.provenance.extra_pass
    (results,) = find_results(made)
    assert results.folder == tmp_path / "quantized"
    assert find_results(tmp_path) == [results]
    assert results.artifacts["static/pt2"] == results.folder / "static" / "pt2"
    assert load(results.artifacts["static/pt2"])(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


class Keeping(Tiny):
    """Keeps its callbacks, one that cannot be copied, and its Trainer, here and in a submodule."""

    def __init__(self, *kept: Any) -> None:
        super().__init__()
        self.kept = {"own": list(kept), "bar": TQDMProgressBar()}

    def configure_callbacks(self) -> Any:
        self.net.owner = [self.trainer]
        self.kept["all"] = self.trainer.callbacks
        return [*self.kept["own"], self.kept["bar"]]


@pytest.mark.filterwarnings("ignore:.*`isinstance.*")
def test_a_module_that_keeps_its_callbacks_and_its_trainer_is_quantized(tmp_path: Path) -> None:
    static, dynamic, export, evaluation = callbacks("pt2")
    model = Keeping(static, dynamic, export, evaluation)
    fit(tmp_path, model, enable_progress_bar=True)
    assert (static.error, dynamic.error) == (None, None)
    entries = evaluation.manifest.artifacts
    assert [entry.status for entry in entries] == ["ok", "unsupported", "ok"]  # there is no pt2 of dynamic
    assert "forward" not in vars(model)


def test_a_copied_module_has_copies_of_its_callbacks_and_no_trainer(tmp_path: Path) -> None:
    class Locked(Callback):
        def __init__(self, owner: Any) -> None:
            self.owner, self.batches = owner, (batch for batch in range(3))

    model: Any = Tiny()
    running = trainer(tmp_path)
    model.kept = [StaticQuantization(), Locked(running), {"trainer": (running,)}]
    copied: Any = detached_copy(model)
    assert copied.kept[0] is not model.kept[0]
    assert isinstance(copied.kept[0], StaticQuantization)
    assert copied.kept[1] is model.kept[1]  # which cannot be copied
    assert copied.kept[2] == {"trainer": (None,)}


def test_a_callback_of_a_module_refers_to_the_copied_module() -> None:
    class Owned(Callback):
        def __init__(self, owner: Any) -> None:
            self.owner = owner

    model: Any = Tiny()
    model.kept = Owned(model)

    def observed(original: Any, x: Tensor) -> Tensor:
        return original(x)  # type: ignore[no-any-return]

    with replaced_forward(model, observed):
        copied: Any = detached_copy(model)
    assert copied.kept.owner is copied


def test_fields_of_an_example_can_be_pickled() -> None:
    value = unflatten({"named_tuple": [["left", {"constant": 1}], ["right", {"constant": 2}]]}, [])
    again = pickle.loads(pickle.dumps(value))
    assert (again, again.left, again.right) == (value, 1, 2)
    assert copy.deepcopy(value) == value
