"""What is observed are the tensors that the model has now, whoever put them there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from tiny import Images, Tiny, fit
from torch import Tensor, nn

import lq_plugin
from lq_plugin import MinMaxObserver, Scheme, StaticQuantization
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.graph.calibration import Calibration
from lq_plugin.graph.capture import capture
from lq_plugin.graph.observation import Observation, ObservationPlan
from lq_plugin.graph.prepare import TrackedTarget

SCHEME = Scheme(observer=MinMaxObserver())


class Scaled(nn.Module):
    """Two linear layers of one weight and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.scale)


def batches() -> list[Tensor]:
    return [torch.full((4, 2), float(number)) for number in range(1, 4)]


def observe(tracked: TrackedTarget, target: nn.Module, sanity_check: bool = False) -> Calibration | None:
    """What is observed in one pass."""
    plan = ObservationPlan(SCHEME, samples=100)
    one = Observation(plan, target, tracked, [3], sanity_check=sanity_check)
    for x in batches():
        one.next_batch()
        target(x)
    return one.close()


def times(parameter: Tensor, factor: float) -> nn.Parameter:
    return nn.Parameter(parameter.detach() * factor)


# What happens to the model between two passes, and whether it has to be captured anew.
CHANGES: dict[str, tuple[Callable[[Scaled], object], bool]] = {
    "in place": (lambda net: net.first.weight.data.mul_(30), False),
    "data": (lambda net: setattr(net.first.weight, "data", net.first.weight.data * 30), False),
    "an assigned buffer": (lambda net: setattr(net, "scale", torch.full((1,), 20.0)), False),
    "a new Parameter": (lambda net: setattr(net.first, "bias", times(net.first.bias, 40)), False),
    "an assigned state dict": (
        lambda net: net.load_state_dict({n: t * 5 for n, t in net.state_dict().items()}, assign=True),
        True,  # which unties weights
    ),
    "a new layer": (lambda net: setattr(net, "first", nn.Linear(2, 2)), True),
    "weights tied no more": (lambda net: setattr(net.first, "weight", times(net.first.weight, 40)), True),
    "a buffer of another shape": (lambda net: setattr(net, "scale", torch.tensor([20.0, 30.0])), True),
    "a Parameter in place of a buffer": (lambda net: replace_scale(net), False),
}


def replace_scale(net: Scaled) -> None:
    del net.scale
    net.scale = nn.Parameter(torch.full((1,), 20.0))


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_pass_observes_what_the_module_has_now(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captures = Mock(wraps=capture)
    monkeypatch.setattr("lq_plugin.graph.prepare.capture", captures)
    tracked, net = TrackedTarget(), Scaled()
    first = observe(tracked, net)
    apply, anew = CHANGES[change]
    apply(net)
    found = observe(tracked, net)
    assert captures.call_count == 1 + anew
    expected = lq_plugin.calibrate(net, batches(), SCHEME)
    assert first is not None
    assert found is not None
    assert found.statistics == expected.statistics
    assert found.statistics != first.statistics
    after = found.provenance
    assert (after.digest, after.structure) == (expected.provenance.digest, expected.provenance.structure)
    assert after.digest != first.provenance.digest


def test_what_the_sanity_check_captured_is_followed_too() -> None:
    tracked, net = TrackedTarget(), Scaled()
    observe(tracked, net, sanity_check=True)
    net.scale = torch.full((1,), 20.0)
    found = observe(tracked, net)
    assert found is not None
    assert found.statistics == lq_plugin.calibrate(net, batches(), SCHEME).statistics


class Assigning(Tiny):
    """Exchanges tensors while it is trained, each time in another way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.register_buffer("scale", torch.ones(1))
        self.plain = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net[1:](self.net[0](x) * self.scale * self.plain)

    def on_fit_start(self) -> None:
        self.plain = self.plain.to(self.device)

    def teardown(self, stage: str) -> None:
        self.plain = self.plain.cpu()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.way == "buffer":
            self.scale = self.scale * 3
        elif self.way == "attribute":
            self.plain = self.plain * 3
        elif self.way == "Parameter":
            self.net[5].weight = nn.Parameter(self.net[5].weight.detach() * 3)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        if self.way == "state dict":
            self.load_state_dict({n: t * 4 for n, t in self.state_dict().items() if t.dim()}, strict=False, assign=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.001)


WAYS: dict[str, list[Callback]] = {"buffer": [], "attribute": [], "Parameter": [], "state dict": [], "SWA": []}


@pytest.mark.filterwarnings("ignore:.*SWA.*", "ignore:.*swa.*")
@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_assigns_tensors_is_quantized_like_its_final_weights(way: str, tmp_path: Path) -> None:
    others = [StochasticWeightAveraging(0.05, swa_epoch_start=1)] if way == "SWA" else []
    callback, model = StaticQuantization(checkpoint="live"), Assigning(way)
    fit(tmp_path, model, callback, *others, enable_checkpointing=False, max_epochs=3 if others else 2)
    assert callback.candidate is not None
    assert_calibrated_as_afresh(callback.candidate.calibration, model)
    assert sqnr(callback.candidate, model) > 20


def assert_calibrated_as_afresh(calibration: Calibration, model: L.LightningModule) -> None:
    expected = lq_plugin.calibrate(model.eval(), [x for x, _ in Images().val_dataloader()])
    assert calibration.provenance.digest == expected.provenance.digest
    assert calibration.statistics.keys() == expected.statistics.keys()
    for name, statistic in expected.statistics.items():
        assert all(torch.equal(calibration.statistics[name][part], statistic[part]) for part in statistic), name


def sqnr(candidate: Any, model: nn.Module) -> float:
    metric, module = SignalToQuantizationNoise(), candidate.converted("torch").module
    for x, _ in Images().val_dataloader():
        metric.update(module(x)[0], model(x).detach())
    return float(metric.compute())
