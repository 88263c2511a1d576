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
HELD_OUT = 4  # every fourth sample is held out to judge what was learnt from the others
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


def drawn_batches(batches: Sequence[int | float], wanted: int, seed: int) -> set[int]:
    """Draw batches of a pass, the same ones for the same seed; the first ones where their number is not known.

    Args:
        batches: number of batches of every loader; infinite where not known.
        wanted: how many to draw, of all loaders together.
        seed: of a private generator.

    Returns:
        Their indices in the pass, which goes through one loader after the other.
    """
    every = sum(batches)
    if math.isinf(every):
        return set(range(wanted))
    order = torch.randperm(int(every), generator=torch.Generator().manual_seed(seed))
    return set(order[:wanted].tolist())


@dataclass
class Draw:
    """Keeps a bounded random draw of samples from the calls that it is shown; the same seed gives the same samples.

    Every call is equally likely to be drawn, however many there are (reservoir sampling, Vitter, 1985). Of a large call
    some samples are kept. If the graph takes only one batch size, calls are kept whole.

    Args:
        graph: the graph that is called.
        samples: how many to keep, give or take one call.
        seed: of a private generator.

    Attributes:
        samples_seen: how many samples it was shown.
        refused: why the last call that did not fit the graph did not; ``None`` if all did.
    """

    graph: Graph
    samples: int
    seed: int
    _calls: list[GraphCall] = field(default_factory=list)
    _seen: int = 0
    _left_out: int = 0
    samples_seen: int = 0
    refused: ArtifactError | None = None

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    @staticmethod
    def calls_for(samples: int, batch_size: int) -> int:
        """Return how many calls of a batch size are needed for this many samples."""
        return math.ceil(samples / max(1, min(batch_size, MOST_OF_ONE_CALL)))

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Show it one call of the graph; samples that it keeps are copied."""
        count = self.graph.samples(tensors)
        room = self.calls_for(self.samples, count)
        self._seen += 1
        self.samples_seen += count
        place = len(self._calls) if len(self._calls) < room else self._random(self._seen)
        if place < max(room, len(self._calls)):
            order = torch.randperm(count, generator=self._generator)[:MOST_OF_ONE_CALL].sort().values
            with torch.inference_mode(False):
                kept = tuple(tensor.detach().cpu().clone() for tensor in self.graph.selected(tensors, order))
            self._calls[place : place + 1] = [kept]

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
        learn: list[GraphCall] = []
        judge: list[GraphCall] = []
        left_out, position = self._left_out, 0
        for call in self._calls:
            finite = [number for number in range(self._parts(call)) if self._is_finite(call, number)]
            left_out += self._parts(call) - len(finite)
            for held_out, calls in ((False, learn), (True, judge)):
                numbers = [n for at, n in enumerate(finite, position) if (at % HELD_OUT == HELD_OUT - 1) is held_out]
                if numbers:
                    calls.append(self.graph.selected(call, torch.tensor(numbers)))
            position += len(finite)
        share = min(1.0, sum(map(self.graph.samples, self._calls)) / total) if total else None
        return Samples(tuple(learn), tuple(judge), left_out, share, self.seed)

    def _parts(self, call: GraphCall) -> int:
        """Into how many parts a call can be split: its samples, or one, the whole call."""
        return self.graph.samples(call) if self.graph.is_divisible(call) else 1

    def _is_finite(self, call: GraphCall, number: int) -> bool:
        part = self.graph.selected(call, torch.tensor([number]))
        return all(bool(tensor.isfinite().all()) for tensor in part if tensor.is_floating_point())

    def _random(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._generator))
