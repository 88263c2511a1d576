"""What every quantizing callback must do; each states its class."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from tiny import Images, Tiny, fit

import lq_plugin
from lq_plugin import DynamicQuantization, StaticQuantization
from lq_plugin.callbacks.quantizing import QuantizingCallback
from lq_plugin.errors import ConfigError


class Stopping(Callback):
    """Breaks a run off in the middle of a validation, as an interrupted cell of a notebook does."""

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            raise ZeroDivisionError


class CallbackContract:
    """The assertions; a subclass names its callback."""

    callback: type[Any]

    def test_it_makes_a_candidate_of_the_best_weights_alone(self, tmp_path: Path) -> None:
        used, kept = self.callback(), ModelCheckpoint(tmp_path, "{step}", monitor="val/loss", mode="max")
        fit(tmp_path, Tiny(), used, kept, max_epochs=2)
        assert used.error is None
        assert used.candidate.name == used.name == used.candidate.scheme.method
        assert used.candidate.provenance.checkpoint == Path(kept.best_model_path).name
        assert lq_plugin.export(used.candidate, tmp_path / "made", ["onnx"])["onnx"].quantized_ops

    def test_a_copy_makes_a_new_candidate_in_each_fit_and_no_folder(self, tmp_path: Path) -> None:
        used = copy.deepcopy(self.callback(skip=["net.0"]))
        fit(tmp_path, Tiny(), used, enable_checkpointing=False)
        first = used.candidate
        fit(tmp_path, Tiny(), used, enable_checkpointing=False)
        assert used.candidate is not first
        assert used.candidate.scheme.skip == ("net.0",)
        assert not (tmp_path / "quantized").exists()

    def test_two_stand_together_under_names_of_their_own(self, tmp_path: Path) -> None:
        one, two = self.callback("one"), self.callback("two")
        kept = ModelCheckpoint(tmp_path, "kept")
        fit(tmp_path, Tiny(), one, two, kept)
        assert (one.candidate.name, two.candidate.name) == ("one", "two")
        assert ("one" in one.state_key, "two" in two.state_key) == (True, True)
        states = torch.load(tmp_path / "kept.ckpt", weights_only=True)["callbacks"]
        for used in (one, two):
            assert (used.state_key in states) == bool(used.state_dict())

    def test_it_gives_the_forward_back_when_a_run_breaks_off(self, tmp_path: Path) -> None:
        model = Tiny()
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path, model, self.callback(), Stopping(), enable_checkpointing=False)
        assert "forward" not in vars(model)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"target": "nett"}, "target: 'nett' is unknown"),
            ({"skip": ["nett"]}, "skip: 'nett' is unknown"),
            ({"only": ["nett"]}, "only: 'nett' is unknown"),
            ({"dynamic_dims": {"y": [1]}}, "dynamic_dims: 'y' is unknown. Allowed: 'x'"),
        ],
        ids=["target", "skip", "only", "dynamic_dims"],
    )
    def test_what_names_nothing_is_refused_before_training(
        self, options: dict[str, Any], said: str, tmp_path: Path
    ) -> None:
        model = Tiny()
        with pytest.raises(ConfigError, match=said):
            fit(tmp_path, model, self.callback(**options), num_sanity_val_steps=0, data=Images())
        assert model.trainer.global_step == 0

    def test_its_options_are_plain(self) -> None:
        options = self.callback(skip=["op:linear"], dynamic_dims={"x": [1]}).options()
        assert json.loads(json.dumps(options)) == options
        assert (options["skip"], options["dynamic_dims"]) == (["op:linear"], {"x": [1]})


class TestStatic(CallbackContract):
    callback = StaticQuantization


class TestDynamic(CallbackContract):
    callback = DynamicQuantization


def test_every_quantizing_callback_has_its_contract() -> None:
    covered = {made.callback for made in CallbackContract.__subclasses__()}
    public = (getattr(lq_plugin, name) for name in lq_plugin.__all__)
    assert covered == {made for made in public if isinstance(made, type) and issubclass(made, QuantizingCallback)}
