"""A source: weights of one checkpoint in a copy of the module, and how validation calls the target."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from tiny import Images, Tiny
from torch import Tensor, nn

from lq_plugin import Scheme
from lq_plugin.checkpoints import LIVE, Checkpoint
from lq_plugin.errors import ArtifactError, ConfigError, UnsupportedError
from lq_plugin.evaluation.loop import Data
from lq_plugin.graph.observation import ObservationPlan, calibrate_pass
from lq_plugin.graph.prepare import prepare
from lq_plugin.source import Source

LIVE_WEIGHTS = Checkpoint(LIVE, 0)


def source(module: Any, target: str | None = None, checkpoint: Checkpoint = LIVE_WEIGHTS, **limits: Any) -> Source:
    loader = Images().val_dataloader()
    return Source(module, target, lambda: checkpoint, Data(None, {"validate": loader}, limits))


class Counting(Tiny):
    """Counts the batches of validation, over all of its copies."""

    batches: list[int]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch_idx)
        super().validation_step(batch, batch_idx)


def test_it_is_opened_when_it_is_first_used_and_once() -> None:
    reads: list[str] = []

    def read() -> Checkpoint:
        reads.append("read")
        return Checkpoint(LIVE, 3)

    made = Source(Tiny(), None, read, Data())
    assert reads == []
    assert (made.checkpoint.global_step, made.model) == (3, made.model)
    assert reads == ["read"]


def test_the_weights_are_those_of_the_checkpoint_in_a_copy() -> None:
    module, trained = Tiny().train(), Tiny()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    made = source(module, "net", Checkpoint("best.ckpt", 3, trained.state_dict()))
    assert not made.model.training
    assert isinstance(made.float_target, nn.Sequential)
    for name, tensor in trained.net.state_dict().items():
        assert torch.equal(made.float_target.state_dict()[name], tensor)
    assert made.float_copy() is not made.float_target
    assert module.training
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


def test_weights_of_another_model_are_a_named_error() -> None:
    made = source(Tiny(), checkpoint=Checkpoint("best.ckpt", 3, {"other": torch.ones(1)}))
    missing = r'checkpoint: .best\.ckpt. does not fit Tiny \(.* Missing key\(s\) in state_dict: "net\.0\.weight".*'
    with pytest.raises(ConfigError, match=rf"^{missing}Give a checkpoint that this model saved\.$"):
        _ = made.model


def test_weights_are_known_by_their_bytes() -> None:
    one, other = Tiny(), Tiny()
    same = source(other, checkpoint=Checkpoint("a.ckpt", 1, one.state_dict()))
    assert source(one).digest == same.digest != source(other).digest


def test_the_first_call_is_that_of_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "batches", [], raising=False)
    state = {"static": {"varying": {"target": "net", "dims": {"input": [0]}}}}  # else all batches are run
    weights = Checkpoint("best.ckpt", 1, Counting().state_dict(), state)
    made = source(Counting(), "net", checkpoint=weights).example("StaticQuantization")
    (image,), options = made.call
    assert made.varying == {"input": (0,)}
    first, _ = next(iter(Images().val_dataloader()))
    assert torch.equal(image, first)
    assert options == {}
    assert Counting.batches == [0]


def test_all_batches_are_run_where_no_checkpoint_says_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "batches", [], raising=False)
    source(Counting(), "net").example("StaticQuantization")
    assert Counting.batches == [0, 1]


class Roundabout(Tiny):
    """Its own forward is never called."""

    def evaluate(self, split: str, batch: Any) -> None:
        self.log(f"{split}/loss", self.net(batch[0]).sum())


def test_a_target_that_is_never_called_is_a_named_error() -> None:
    message = r"'Roundabout' is never called in validation_step, .* one of \['net'\]: StaticQuantization\(target='…'\)"
    with pytest.raises(UnsupportedError, match=message):
        source(Roundabout()).example("StaticQuantization")
    assert source(Roundabout(), "net").example("StaticQuantization")


def test_a_module_without_validation_is_a_named_error() -> None:
    with pytest.raises(UnsupportedError, match="never called in validation_step"):
        source(L.LightningModule()).example("StaticQuantization")


@pytest.mark.parametrize(("limit", "samples"), [(1.0, 16), (1, 8)])
def test_a_pass_is_limited_as_that_of_the_trainer(limit: float, samples: int) -> None:
    plan = ObservationPlan(Scheme(observer="minmax"))
    found, _ = calibrate_pass(source(Tiny(), validate=limit).observed_pass, plan) or pytest.fail("never called")
    assert found.provenance.samples == samples


class Particular(Tiny):
    """Its hooks need what its step returns, and all batches at the end; its step takes no number of the batch."""

    def validation_step(self, batch: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": self(batch[0])}

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert len(outputs["logits"]) == len(batch[0])

    def on_validation_epoch_end(self) -> None:
        raise AssertionError("not all batches have been seen")


class Watched(Images):
    """Keeps the exceptions that end a run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[BaseException] = []

    def on_exception(self, exception: BaseException) -> None:
        self.seen.append(exception)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_samples_need_nothing_of_a_module_but_its_steps(batch_size: int) -> None:
    data = Watched(val_samples=96, batch_size=batch_size)
    source = Source(Particular(), None, lambda: LIVE_WEIGHTS, Data(data))
    graph = prepare(source.float_target, [next(iter(data.val_dataloader()))[0]])
    samples = source.samples(graph, 64, 0)
    sizes = [sum(map(graph.samples, calls)) for calls in (samples.learn, samples.judge)]
    assert sizes == [48, 16]
    assert samples.share == pytest.approx(64 / 96, abs=1e-3)
    assert data.seen == []


def test_the_first_call_needs_nothing_of_a_module_but_its_steps() -> None:
    (image,), _ = source(Particular()).example("StaticQuantization").call
    assert len(image) == 8


class Growing(Tiny):
    """The images of its second batch have another size, which its graph does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0] if batch_idx != 1 else nn.functional.pad(batch[0], (1, 1, 1, 1)))


def test_a_call_that_does_not_fit_is_left_out_and_counted() -> None:
    data = Images(val_samples=96)
    made = Source(Growing(), None, lambda: LIVE_WEIGHTS, Data(data))
    images = next(iter(data.val_dataloader()))[0]
    graph = prepare(made.float_target, [images])
    samples = made.samples(graph, 96, 0)
    kept = sum(map(graph.samples, (*samples.learn, *samples.judge)))
    assert (kept, samples.left_out) == (96 - len(images), len(images))
    larger = prepare(made.float_target, [nn.functional.pad(images, (2, 2, 2, 2))])
    with pytest.raises(ArtifactError):
        made.samples(larger, 96, 1)
