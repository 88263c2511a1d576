"""A two-layer LSTM and how it is trained."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.regression import MeanAbsoluteError

from .data import FEATURES


class TempsLstm(LightningModule):
    """Forecasts temperatures: ``forward`` takes ``(N, T, 5)`` and gives ``(N, horizon)`` in °F.

    What is forecast is the difference to the last known hour, which is easier than the temperature itself.

    Args:
        hidden: width of the LSTM.
        layers: of the LSTM.
        horizon: hours to forecast; that of the data.
        mean: of the training temperatures in °F.
        deviation: their standard deviation.
        lr: peak learning rate of the one-cycle schedule.
    """

    def __init__(
        self,
        hidden: int = 128,
        layers: int = 2,
        horizon: int = 12,
        mean: float = 53.7,
        deviation: float = 10.0,
        lr: float = 3e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.mean, self.deviation, self.lr = mean, deviation, lr
        self.lstm = nn.LSTM(FEATURES, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, horizon)
        self.val_mae = MeanAbsoluteError()
        self.test_mae = MeanAbsoluteError()

    def forward(self, x: Tensor) -> Tensor:
        change = self.head(self.lstm(x)[0][:, -1])
        return (x[:, -1, :1] + change) * self.deviation + self.mean  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.l1_loss(self(batch[0]), batch[1])
        self.log("train/mae", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.val_mae(self(batch[0]), batch[1])
        self.log("val/mae", self.val_mae, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.test_mae(self(batch[0]), batch[1])
        self.log("test/mae", self.test_mae)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
