"""What the recipes' data share: three splits in memory and their loaders."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lq_plugin.errors import ConfigError

Batches = DataLoader[tuple[Tensor, ...]]


class InMemory(LightningDataModule):
    """Loaders of ``splits``, which a subclass fills in ``setup``: tensors by the names ``train``, ``val`` and ``test``.

    Args:
        batch_size: samples in a batch, for every split.
        samples: how many samples of each split are kept, for a quick test; all of them for ``None``.
        counts: the subclass's other options that are counts, to be checked too.

    Raises:
        ConfigError: a count is out of range.
    """

    def __init__(self, batch_size: int, samples: int | None, **counts: int) -> None:
        super().__init__()
        for name, value in {**counts, "batch_size": batch_size, "samples": samples}.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is out of range. Allowed: 1 and above.")
        self.batch_size = batch_size
        self.samples = samples
        self.splits: dict[str, TensorDataset] = {}

    def train_dataloader(self) -> Batches:
        return DataLoader(self.splits["train"], batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> Batches:
        return DataLoader(self.splits["val"], batch_size=self.batch_size)

    def test_dataloader(self) -> Batches:
        return DataLoader(self.splits["test"], batch_size=self.batch_size)
