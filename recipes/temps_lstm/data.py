"""A year of hourly temperatures in Seattle, cut into windows of a past and a future."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lq_plugin.errors import require

from ..splits import InMemory

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
HOURS_A_DAY, HOURS_A_YEAR = 24, 8760
FEATURES = 5


class SeattleTemps(InMemory):
    """Hourly temperatures as vega_datasets ships them: inputs ``(N, history, 5)``, targets ``(N, horizon)`` in °F.

    The features are the temperature, in standard deviations of the training part, and the hour of the day and of the
    year as points on a circle. The year is cut into training, validation and test in this order, and no window reaches
    over a cut.

    Args:
        history: hours that are known.
        horizon: hours to forecast.
        batch_size: windows in a batch, of every split.
        samples: how many windows to keep of each split, for a quick look; all of them by default.

    Raises:
        MissingExtraError: vega_datasets is not installed.
    """

    def __init__(self, history: int = 48, horizon: int = 12, batch_size: int = 64, samples: int | None = None) -> None:
        super().__init__(batch_size, samples, history=history, horizon=horizon)
        self.history, self.horizon = history, horizon

    def setup(self, stage: str) -> None:
        """Read the temperatures at first use; later stages find them in memory."""
        if self.splits:
            return
        temperatures = _load()
        ends = torch.tensor([0.0, *SHARES.values()]).cumsum(0).mul(len(temperatures)).round().int().tolist()
        train = temperatures[: ends[1]]
        features = _features(temperatures, train.mean(), train.std())
        for name, start, end in zip(SHARES, ends, ends[1:], strict=False):
            past = features[start : end - self.horizon].unfold(0, self.history, 1).transpose(1, 2)
            future = temperatures[start + self.history : end].unfold(0, self.horizon, 1)
            self.splits[name] = TensorDataset(past[: self.samples].clone(), future[: self.samples].clone())


def _load() -> Tensor:
    table = require("vega_datasets", "recipes", "The temperatures").local_data.seattle_temps()
    return torch.tensor(table["temp"].to_numpy(), dtype=torch.float32)


def _features(temperatures: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    hours = torch.arange(len(temperatures))
    circles = [hours / length * 2 * math.pi for length in (HOURS_A_DAY, HOURS_A_YEAR)]
    places = [function(circle) for circle in circles for function in (torch.sin, torch.cos)]
    return torch.stack([(temperatures - mean) / deviation, *places], dim=1)
