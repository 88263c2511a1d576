"""What the scripts of the packages share: series to forecast, a model of the user's own, and a short training."""

import lightning as L
import numpy as np
import torch


def waves(groups=4, steps=200):
    """Series of equal length: noisy waves around different levels."""
    noise, time = np.random.default_rng(0), np.arange(steps)
    return [
        (10 + group + 3 * np.sin(time / 4 + group) + noise.normal(0, 0.3, steps)).astype(np.float32)
        for group in range(groups)
    ]


class Segmentation(L.LightningModule):
    """A network that marks places in images; batches are dicts."""

    def __init__(self, net, loss):
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch["image"]), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self(batch["image"]), batch["label"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fitted(module, training, validation, callbacks, folder, **options):
    """Train a LightningModule, and return it."""
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        enable_progress_bar=False,
        logger=False,
        **options,
    )
    trainer.fit(module, training, validation)
    return module
