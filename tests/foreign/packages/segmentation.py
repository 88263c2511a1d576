"""segmentation-models-pytorch: an encoder of timm in a LightningModule of the user's own."""

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader
from training import Segmentation, fitted

REQUIREMENTS = ["huggingface_hub"]
NO_DEPS = ["segmentation-models-pytorch", "timm"]  # they ask for torchvision, which needs another build of torch


def _pictures(count=16):
    draw = torch.Generator().manual_seed(0)
    masks = [(torch.rand(1, 64, 64, generator=draw) > 0.5).float() for _ in range(count)]
    return [{"image": mask.expand(3, -1, -1) + torch.randn(3, 64, 64, generator=draw), "label": mask} for mask in masks]


def unet(callbacks, folder):
    net = smp.Unet("resnet18", encoder_weights=None, classes=1)
    loader = DataLoader(_pictures(), batch_size=4)
    return fitted(Segmentation(net, smp.losses.DiceLoss("binary")), loader, loader, callbacks, folder)


MODELS = {"Unet(resnet18)": unet}
