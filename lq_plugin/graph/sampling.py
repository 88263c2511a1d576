"""A bounded, seeded draw of samples from the calls of a graph: algorithms learn from some and are judged by others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lq_plugin.errors import ArtifactError
from lq_plugin.graph.graph import Graph

GraphCall = tuple[Tensor, ...]  # the flat inputs of a graph
HELD_OUT = 4  # one of so many samples is held out to judge what was learnt from the others
MOST_OF_ONE_CALL = 32  # samples; samples of one batch may be alike, so several calls are better


@dataclass(frozen=True)
class Samples:
    """Samples of a graph's inputs, as calls.

    Args:
        learn: samples to learn from.
        judge: samples that are held out to judge what was learnt.
        left_out: how many more were drawn and left out, because they hold nan or infinity, or are in a call that the
            graph does not take.
        share: the share of all samples that was drawn; ``None`` if their number is not known.
        seed: of the draw.
    """

    learn: tuple[GraphCall, ...]
    judge: tuple[GraphCall, ...]
    left_out: int = 0
    share: float | None = None
    seed: int = 0


def drawn_batches(batches: Sequence[int | float], wanted: int, seed: int, *, last: bool = False) -> set[int]:
    """Draw batches of a pass, the same ones for the same seed; the first ones where their number is not known.

    Args:
        batches: number of batches of every loader; infinite where not known.
        wanted: how many to draw, of all loaders together.
        seed: of a private generator.
        last: draw from the other end of the same permutation. Samples to learn from and to judge by should not be those
            that were observed: for these no range is too narrow. They are the same only where there are too few.

    Returns:
        Their indices in the pass, which goes through one loader after the other.
    """
    every = sum(batches)
    if math.isinf(every):
        return set(range(wanted))
    order = torch.randperm(int(every), generator=torch.Generator().manual_seed(seed)).tolist()
    return set(order[max(0, len(order) - wanted) :] if last else order[:wanted])


@dataclass
class Draw:
    """Keeps a bounded random draw of samples from the calls that it is shown; the same seed gives the same samples.

    Of every four samples that it is shown one is held out; if the graph takes only one batch size, of every four calls.
    Of each part, every call is equally likely to be drawn, however many there are (reservoir sampling, Vitter, 1985).
    Of a large call some samples are kept.

    Args:
        graph: the graph that is called.
        samples: how many to keep, give or take one call.
        seed: of private generators.

    Attributes:
        samples_seen: how many samples it was shown.
        refused: why the last call that did not fit the graph did not; ``None`` if all did.
    """

    graph: Graph
    samples: int
    seed: int
    _calls_seen: int = 0
    _left_out: int = 0
    samples_seen: int = 0
    refused: ArtifactError | None = None

    def __post_init__(self) -> None:
        self._generator, self._places = torch.Generator().manual_seed(self.seed), torch.zeros(0, dtype=torch.int64)
        judge = self.samples // HELD_OUT
        self._learn = _Reservoir(
            self.graph, self.samples - judge, MOST_OF_ONE_CALL * (HELD_OUT - 1) // HELD_OUT, self.seed
        )
        self._judge = _Reservoir(self.graph, judge, MOST_OF_ONE_CALL // HELD_OUT, self.seed)

    @staticmethod
    def calls_for(samples: int, batch_size: int) -> int:
        """Return how many calls of a batch size are needed for this many samples."""
        return _calls_for(samples, batch_size, MOST_OF_ONE_CALL)

    def add(self, tensors: Sequence[Tensor]) -> GraphCall | None:
        """Show it one call of the graph; samples that it keeps are copied.

        Returns:
            The samples that are not held out; ``None`` if all are. Ranges must be observed on these alone: for samples
            that were observed no range is too narrow, so they could not judge one.
        """
        count, divisible = self.graph.samples(tensors), self.graph.is_divisible(tensors)
        first = self.samples_seen if divisible else self._calls_seen
        held_out = self._held_out(first, count if divisible else 1)
        self._calls_seen += 1
        self.samples_seen += count
        rest = self._part(tensors, ~held_out)
        for reservoir, part in ((self._learn, rest), (self._judge, self._part(tensors, held_out))):
            if part is not None:
                reservoir.add(part)
        return rest

    def _held_out(self, first: int, count: int) -> Tensor:
        """Which of the next ones are held out, never the very first, which may be the only one.

        One fixed place of four could be in step with the order of the data.
        """
        numbers = torch.arange(first, first + count)
        blocks = numbers // HELD_OUT - first // HELD_OUT
        begun = self._places[-1:] if first % HELD_OUT else self._places[:0]
        new = max(0, -(-(first + count) // HELD_OUT) - first // HELD_OUT - len(begun))
        self._places = torch.cat([begun, torch.randint(HELD_OUT, (new,), generator=self._generator)])
        if not self._calls_seen:
            self._places[:1].clamp_(min=1)
        return numbers % HELD_OUT == self._places[blocks]

    def _part(self, tensors: Sequence[Tensor], chosen: Tensor) -> GraphCall | None:
        """The chosen samples of a call; the whole call if it cannot be divided."""
        return self.graph.selected(tensors, chosen.nonzero().flatten()) if bool(chosen.any()) else None

    def see(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Show it one call of the target; one that does not fit the graph is left out and counted."""
        try:
            tensors = self.graph.signature.flatten(args, kwargs)
        except ArtifactError as error:
            self.refused = error
            self._leave_out(args, kwargs)
        else:
            self.add(tensors)

    def _leave_out(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Count the samples of a call that the graph does not take: as many as its first tensor has."""
        sizes = (leaf.shape[0] for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim())
        count = next(sizes, 1)
        self._left_out += count
        self.samples_seen += count

    def drawn(self, total: int | None = None) -> Samples:
        """Return the samples, some of them held out.

        Args:
            total: how many samples there are in all; ``None`` if that is not known.
        """
        kept = [*self._learn.calls, *self._judge.calls]
        (learn, bad_learn), (judge, bad_judge) = self._learn.finite(), self._judge.finite()
        share = min(1.0, sum(map(self.graph.samples, kept)) / total) if total else None
        return Samples(learn, judge, self._left_out + bad_learn + bad_judge, share, self.seed)


@dataclass
class _Reservoir:
    """A bounded random draw of calls.

    Args:
        graph: the graph that is called.
        samples: how many to keep, give or take one call.
        most: samples of one call that are kept at most.
        seed: of a private generator.

    Attributes:
        calls: what is kept.
    """

    graph: Graph
    samples: int
    most: int
    seed: int
    calls: list[GraphCall] = field(default_factory=list)
    _seen: int = 0

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def add(self, tensors: Sequence[Tensor]) -> None:
        count = self.graph.samples(tensors)
        most = self.most if self.graph.is_divisible(tensors) else MOST_OF_ONE_CALL
        room = _calls_for(self.samples, count, most)
        self._seen += 1
        place = len(self.calls) if len(self.calls) < room else self._random(self._seen)
        if place < max(room, len(self.calls)):
            order = torch.randperm(count, generator=self._generator)[: self.most].sort().values
            with torch.inference_mode(False):
                kept = tuple(tensor.detach().cpu().clone() for tensor in self.graph.selected(tensors, order))
            self.calls[place : place + 1] = [kept]

    def finite(self) -> tuple[tuple[GraphCall, ...], int]:
        """The calls without the samples that hold nan or infinity, and how many these are."""
        found, left_out = list[GraphCall](), 0
        for call in self.calls:
            parts = self.graph.samples(call) if self.graph.is_divisible(call) else 1  # one is the whole call
            numbers = [number for number in range(parts) if self._is_finite(call, number)]
            left_out += parts - len(numbers)
            if numbers:
                found.append(self.graph.selected(call, torch.tensor(numbers)))
        return tuple(found), left_out

    def _is_finite(self, call: GraphCall, number: int) -> bool:
        part = self.graph.selected(call, torch.tensor([number]))
        return all(bool(tensor.isfinite().all()) for tensor in part if tensor.is_floating_point())

    def _random(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._generator))


def _calls_for(samples: int, batch_size: int, most: int) -> int:
    return math.ceil(samples / max(1, min(batch_size, most)))
