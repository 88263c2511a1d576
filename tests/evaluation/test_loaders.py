"""One process goes through the data of all, and through nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, DistributedSampler, Subset, SubsetRandomSampler, TensorDataset

from lq_plugin.evaluation.loaders import _whole

DATA = TensorDataset(torch.arange(11))
CHOSEN = [1, 4, 5, 7, 10]


class Chosen(DistributedSampler[Any]):
    """A sampler of the user's own, which chooses."""

    def __iter__(self) -> Any:
        return iter(CHOSEN[self.rank :: self.num_replicas])


class OnlyItsOwn(DistributedSampler[Any]):
    """Has the indices of its own process alone."""

    def __iter__(self) -> Any:
        return iter({1: [1, 5, 9]}[self.rank])


@pytest.mark.parametrize(
    ("sampler", "wanted"),
    [
        (DistributedSampler(DATA, 3, 1, shuffle=False), list(range(11))),
        (UnrepeatedDistributedSampler(DATA, num_replicas=3, rank=1, shuffle=False), list(range(11))),
        (DistributedSampler(Subset(DATA, range(5)), 2, 1, shuffle=True), list(range(5))),
        (Chosen(DATA, 2, 1), CHOSEN),
        (DistributedSamplerWrapper(SubsetRandomSampler(CHOSEN), num_replicas=2, rank=1), CHOSEN),
        (OnlyItsOwn(DATA, 2, 1), [1, 5, 9]),
    ],
    ids=["shares that are filled up", "Lightning's", "of a part", "the user's own", "wrapped", "one that raises"],
)
def test_it_has_what_all_processes_have_together(
    sampler: Any, wanted: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    found = torch.cat([values for (values,) in _whole(DataLoader(DATA, 2, sampler=sampler))])
    assert sorted(found.tolist()) == wanted
    assert ("OnlyItsOwn cannot say what other processes choose" in capsys.readouterr().out) == (len(wanted) == 3)
