"""The recipes with uneven channels: FP32 results stay the same, bit for bit, and plain static INT8 fails."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from idx import write_images
from torch import Tensor, nn

import lq_plugin
from lq_plugin.algorithms.equalization import equalization
from lq_plugin.candidate import StaticCandidate
from lq_plugin.errors import ConfigError
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.recipes.fashion_mobile.data import FashionData
from lq_plugin.recipes.fashion_mobile.model import MobileCnn
from lq_plugin.recipes.mnist_vit_outliers.model import OutlierVit
from lq_plugin.scheme import Scheme


def images(size: int, count: int = 32) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))


def mobile(**options: object) -> MobileCnn:
    torch.manual_seed(0)
    model = MobileCnn(width=8, **options).train()  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(3):
            model(images(32))
    return model.eval()


def decibels(candidate: StaticCandidate, inputs: Tensor) -> float:
    metric = SignalToQuantizationNoise()
    with torch.no_grad():
        metric.update(candidate.converted("onnxruntime").module(inputs), candidate.reference.module(inputs))
    return float(metric.compute())


def quantized(model: nn.Module, inputs: Tensor) -> StaticCandidate:
    candidate = lq_plugin.quantize(model, [inputs], Scheme(algorithms=[]))
    assert isinstance(candidate, StaticCandidate)
    return candidate


def test_equalization_undoes_uneven_channels() -> None:
    inputs = images(32, count=16)
    block = mobile().net[:4]  # the first convolution and a block
    candidate = quantized(block, inputs)
    result = equalization(candidate, [[inputs]], 0)
    assert decibels(result, inputs) > decibels(candidate, inputs) + 10  # seen: 22 → 37 dB
    assert {op.op for op in candidate.placed("onnxruntime").float_ops} == {"minimum"}
    assert not result.placed("onnxruntime").float_ops


def test_uneven_channels_change_no_bit() -> None:
    with torch.no_grad():
        for activation in ("relu", "relu6"):
            even, uneven = (mobile(activation=activation, uneven=most) for most in (0, 5))
            assert torch.equal(even(images(32)), uneven(images(32)))
        torch.manual_seed(0)
        plain, outlying = OutlierVit(depth=1, outliers=0).eval(), OutlierVit(depth=1).eval()
        outlying.load_state_dict(plain.state_dict())
        assert torch.equal(plain(images(28)), outlying(images(28)))


def test_outliers_ruin_plain_int8() -> None:
    torch.manual_seed(0)
    model = OutlierVit(depth=1).eval()
    assert decibels(quantized(model, images(28)), images(28)) < 15  # without outliers: 36


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path, train=30, test=10)


def test_images_are_read_from_idx_files(folder: Path) -> None:
    data = FashionData(str(folder), batch_size=4, samples=8)
    data.setup("fit")
    batch, labels = next(iter(data.test_dataloader()))
    assert batch.shape == (4, 1, 32, 32)
    assert labels.tolist() == [0, 1, 2, 3]
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 8, "val": 8, "test": 8}


def test_what_is_missing_or_damaged_is_said(folder: Path, tmp_path: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09abc"))
    with pytest.raises(ConfigError, match=r"t10k-labels-idx1-ubyte in .* is not an IDX file"):
        FashionData(str(folder)).setup("fit")
    (folder / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(ConfigError, match=r"holds no train-images-idx3-ubyte.*dataset-fashion-mnist"):
        FashionData(str(folder)).setup("fit")


def test_options_out_of_range_are_refused() -> None:
    for make in (
        lambda: FashionData(samples=0),
        lambda: MobileCnn(uneven=17),
        lambda: MobileCnn(activation="gelu"),
        lambda: OutlierVit(channels=97),
        lambda: OutlierVit(outliers=-1),
    ):
        with pytest.raises(ConfigError):
            make()
