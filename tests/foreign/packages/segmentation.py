"""segmentation-models-pytorch: an encoder of timm in a LightningModule of the user's own."""

import lightning as L
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader

REQUIREMENTS = ["huggingface_hub"]
NO_DEPS = ["segmentation-models-pytorch", "timm"]  # they ask for torchvision, which needs another build of torch


class Segmentation(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = smp.Unet("resnet18", encoder_weights=None, classes=1)
        self.loss = smp.losses.DiceLoss("binary")

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch["image"]), batch["mask"])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self(batch["image"]), batch["mask"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def _pictures(count=16):
    draw = torch.Generator().manual_seed(0)
    masks = [(torch.rand(1, 64, 64, generator=draw) > 0.5).float() for _ in range(count)]
    return [{"image": mask.expand(3, -1, -1) + torch.randn(3, 64, 64, generator=draw), "mask": mask} for mask in masks]


def unet(callbacks, folder):
    module = Segmentation()
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        enable_progress_bar=False,
        logger=False,
    )
    loader = DataLoader(_pictures(), batch_size=4)
    trainer.fit(module, loader, loader)
    return module


MODELS = {"Unet(resnet18)": unet}
