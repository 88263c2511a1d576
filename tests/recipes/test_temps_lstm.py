"""The temperatures are cut in time, and no window sees what it must not."""

from __future__ import annotations

import pytest
import torch

from lq_plugin.errors import ConfigError
from lq_plugin.recipes.temps_lstm.data import HOURS_A_YEAR, SeattleTemps
from lq_plugin.recipes.temps_lstm.model import TempsLstm


@pytest.fixture(scope="module")
def data() -> SeattleTemps:
    data = SeattleTemps(history=48, horizon=12)
    data.setup("fit")
    return data


def test_windows_do_not_reach_over_a_cut(data: SeattleTemps) -> None:
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sum(sizes.values()) == HOURS_A_YEAR - 1 - 3 * (48 + 12 - 1)  # the data set lacks one hour
    assert sizes["train"] > 4 * sizes["val"]


def test_a_target_is_what_comes_after_its_window(data: SeattleTemps) -> None:
    past, future = data.splits["train"].tensors
    assert past.shape[1:] == (48, 5)
    assert future.shape[1:] == (12,)
    mean, deviation = TempsLstm().hparams["mean"], TempsLstm().hparams["deviation"]
    fahrenheit = past[12:, -12:, 0] * deviation + mean  # what was to be forecast 12 windows before
    assert (fahrenheit - future[:-12]).abs().max() < 0.5


def test_features_are_normalized_with_the_training_part_alone(data: SeattleTemps) -> None:
    past = data.splits["train"].tensors[0]
    assert past[::48, :, 0].mean().abs() < 0.05
    assert torch.allclose(past[..., 1].square() + past[..., 2].square(), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("option", ["history", "horizon", "batch_size", "samples"])
def test_numbers_below_one_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}: 0 is out of range"):
        SeattleTemps(**{option: 0})


def test_an_untrained_network_forecasts_about_the_last_known_hour(data: SeattleTemps) -> None:
    past, future = data.splits["val"].tensors
    torch.manual_seed(0)
    with torch.no_grad():
        forecast = TempsLstm()(past[:256])
    assert forecast.shape == future[:256].shape
    assert (forecast - future[:256]).abs().mean() < 10
