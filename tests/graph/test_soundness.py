"""What makes figures meaningless is said once, with the name of the value or the module."""

from __future__ import annotations

import logging
import random
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.graph.soundness import warn_of_random_forward
from lq_plugin.observers import OBSERVERS


class Net(nn.Module):
    """Two linear layers; what is between them is multiplied and shifted."""

    def __init__(self, factor: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.factor, self.shift = nn.Linear(4, 4), nn.Linear(4, 4), factor, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.factor + self.shift)


def quantize(model: nn.Module, observer: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings."""
    batches = [torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    with caplog.at_level(logging.WARNING, "lq_plugin"):
        candidate = lq_plugin.quantize(model, batches, Scheme(observer=observer))
    assert candidate.converted("torch").module(batches[0])[0].shape == (8, 4)
    return [record.getMessage() for record in caplog.records if record.name == "lq_plugin"]


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize(
    ("factor", "shift", "said"),
    [
        (0.0, 7.0, r"\.add was constant \(7(\.\d+)?\) in every batch"),
        (1e-5, 100.0, r"\.add was constant \(100\) in every batch"),
        (0.0, 0.0, r"\.add was 0, nan or infinite in every batch"),
        (torch.nan, 0.0, r"\.add was 0, nan or infinite in every batch"),
        (1e38, 0.0, r"\.add spans -\d\.\d+e\+\d+ to \d\.\d+e\+\d+, so everything below 4e\+27 becomes 0"),
    ],
    ids=["constant", "nearly constant", "zero", "nan", "wide"],
)
def test_a_value_that_8_bits_cannot_represent_is_named_in_one_warning(
    observer: str, factor: float, shift: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    warnings = quantize(Net(factor, shift), observer, caplog)
    assert len(warnings) == 1
    assert warnings[0].startswith("calibration of 'static' found values that INT8 cannot represent: ")
    assert ";" not in warnings[0]  # one alone
    assert re.search(said, warnings[0]), warnings[0]


@pytest.mark.parametrize("observer", OBSERVERS)
def test_of_ordinary_values_nothing_is_said(observer: str, caplog: pytest.LogCaptureFixture) -> None:
    assert quantize(Net(1e-20), observer, caplog) == []
    assert quantize(Net(1.0, 50.0), observer, caplog) == []


class Noisy(nn.Module):
    """Adds noise in eval mode, drawn by one of three generators."""

    def __init__(self, source: str, amount: float = 0.1) -> None:
        super().__init__()
        self.layer, self.source, self.amount, self.calls = nn.Linear(4, 4), source, amount, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        drawn = {
            "torch": torch.rand(()).item(),
            "numpy": np.random.rand(),
            "python": random.random(),
            "none": 0.0,
            "counted": float(self.calls),
        }
        return self.layer(x) + self.amount * drawn[self.source]


@pytest.mark.parametrize("source", ["torch", "numpy", "python", "none", "counted"])
def test_a_random_forward_is_said_and_no_generator_is_moved(source: str, caplog: pytest.LogCaptureFixture) -> None:
    model = Noisy(source)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with caplog.at_level(logging.WARNING, "lq_plugin"):
        warn_of_random_forward("mine", model, ([torch.ones(2, 4)], {}))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (source in ("torch", "numpy", "python"))
    assert all(m.startswith("candidate 'mine': the forward of Noisy is random in eval mode") for m in messages)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert model.calls == 0


class Sampling(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand_like(x))


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_every_method_says_so(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lq_plugin"):
        lq_plugin.quantize(Sampling(), [torch.randn(8, 4)], method)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "lq_plugin"]
    assert message.startswith(f"candidate {method!r}: the forward of Sampling is random in eval mode")
