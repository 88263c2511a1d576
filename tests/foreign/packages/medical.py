"""MONAI: three-dimensional segmentation in a LightningModule of the user's own; batches are dicts of MetaTensors."""

import torch
from monai.data import DataLoader, Dataset
from monai.losses import DiceLoss
from monai.networks.nets import UNETR, SegResNet, SwinUNETR, UNet
from monai.transforms import Compose, EnsureTyped
from training import Segmentation, fitted

REQUIREMENTS = ["monai", "einops"]


def _volumes(size, count=16):
    draw = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(count):
        label = (torch.rand(1, *[size // 4] * 3, generator=draw) > 0.7).float()
        label = label.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
        samples.append({"image": label + 0.3 * torch.randn(label.shape, generator=draw), "label": label})
    return Dataset(samples, Compose([EnsureTyped(keys=["image", "label"])]))


def _fit(net, callbacks, folder, size=16):
    loader = DataLoader(_volumes(size), batch_size=4)
    return fitted(Segmentation(net, DiceLoss(sigmoid=True)), loader, loader, callbacks, folder)


def unet(callbacks, folder):
    net = UNet(spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
    return _fit(net, callbacks, folder)


def segresnet(callbacks, folder):
    return _fit(SegResNet(spatial_dims=3, init_filters=8, in_channels=1, out_channels=1), callbacks, folder)


def unetr(callbacks, folder):
    net = UNETR(1, 1, img_size=(16, 16, 16), feature_size=8, hidden_size=48, mlp_dim=64, num_heads=4)
    return _fit(net, callbacks, folder)


def swin(callbacks, folder):
    net = SwinUNETR(in_channels=1, out_channels=1, feature_size=12, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2))
    return _fit(net, callbacks, folder, size=32)


MODELS = {"UNet": unet, "SegResNet": segresnet, "UNETR": unetr, "SwinUNETR": swin}
