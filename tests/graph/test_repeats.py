"""A sample that a sampler hands out a second time is told from those that it hands out once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from lq_plugin.graph.capture import capture
from lq_plugin.graph.repeats import Repeats, repeats_in, without_repeats

PLAIN, SHUFFLED, WRAPPED = "plain", "shuffled", "wrapped"


def loader(kind: str, samples: int, batch_size: int, processes: int, rank: int) -> DataLoader[Any]:
    data: Any = range(samples)
    if kind == WRAPPED:
        sampler = DistributedSamplerWrapper(SequentialSampler(data), num_replicas=processes, rank=rank, shuffle=False)
    else:
        sampler = DistributedSampler(data, processes, rank, shuffle=kind == SHUFFLED, seed=3)
    return DataLoader(data, batch_size, sampler=sampler)


@pytest.mark.parametrize("kind", [PLAIN, SHUFFLED, WRAPPED])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_sample_is_unique_once_among_all_processes(kind: str, processes: int) -> None:
    for samples in (1, 2, 3, 6, 31, 32, 33):
        for batch_size in (1, 2, 8):
            unique: list[int] = []
            for rank in range(processes):
                own = loader(kind, samples, batch_size, processes, rank)
                for number, batch in enumerate(own):
                    repeats = repeats_in([[None], {"a": own}], number, 1)
                    assert repeats is None or repeats.samples == len(batch)
                    unique += batch.tolist()[: None if repeats is None else repeats.unique]
            assert sorted(unique) == list(range(samples)), (samples, batch_size)


def test_nothing_is_repeated_where_the_rest_is_dropped_or_the_sampler_is_another() -> None:
    data: Any = range(5)
    dropping = DataLoader(data, 2, sampler=DistributedSampler(data, 2, 1, shuffle=False, drop_last=True))
    for other in (dropping, DataLoader(data, 2), [], None, data):
        assert repeats_in(other, 0, 0) is None
        assert repeats_in(other, 1, 0) is None


def test_a_call_loses_the_repeated_samples_and_one_that_is_not_the_batch_is_left_out() -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return x + shift

    x, shift = torch.arange(12.0).view(4, 3), torch.ones(3)
    graph = capture(Shifted(), (x, shift), {}, {})
    (kept, also) = without_repeats([x, shift], graph, Repeats(4, 3)) or ()
    assert torch.equal(kept, x[:3])
    assert torch.equal(also, shift)
    assert without_repeats([x, shift], graph, None) == [x, shift]
    assert without_repeats([x, shift], graph, Repeats(4, 0)) is None
    assert without_repeats([torch.cat([x, x]), shift], graph, Repeats(4, 3)) is None
