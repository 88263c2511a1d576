"""Watching a target's calls in a validation pass, without anybody noticing."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lq_plugin.callbacks import repeats
from lq_plugin.callbacks.rehearsal import inability
from lq_plugin.errors import CalibrationError, LqError
from lq_plugin.evaluation import loop
from lq_plugin.graph.calibration import Recording
from lq_plugin.graph.capture import Call
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.placement import place_everywhere
from lq_plugin.graph.prepare import TrackedTarget
from lq_plugin.observers import Statistic
from lq_plugin.scheme import Scheme


@dataclass(frozen=True)
class Seen:
    """What one process saw in one pass: statistics by the name of the value, samples, batches, and of which graph."""

    statistics: Mapping[str, Statistic]
    samples: int
    batches: int
    digest: str
    structure: str


class Listener:
    """Captures a target's graph at its first call, and runs it beside the target for some batches of each pass.

    Args:
        scheme: what is observed, and how.
        samples: how many samples to observe in a pass, rounded up to whole batches.
        seed: of the private generator that chooses the batches.
        dynamic_dims: see :func:`~lq_plugin.graph.prepare.prepare`.

    Attributes:
        example: the first call, on the CPU; what the graph was captured from.
        failure: why nothing can be observed. It never stops a training, see :meth:`hear`.
        heard: whether the target was called in this pass.
    """

    def __init__(self, scheme: Scheme, samples: int, seed: int, dynamic_dims: Mapping[str, Sequence[int]]) -> None:
        self._scheme, self._samples, self._seed = scheme, samples, seed
        self._tracked = TrackedTarget(dynamic_dims)
        self._shadow = ExitStack()
        self._recording: Recording | None = None
        self._batches: Sequence[int | float] = ()
        self._chosen: set[int] = set()
        self._position = -1
        self._share: repeats.Share | None = None
        self._processes = 1
        self._rehearsal = False
        self.example: Call | None = None
        self.failure: LqError | None = None
        self.heard = False

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: not the shadow, which is the original's to end, nor a graph of the live weights."""
        return vars(self) | {"_shadow": ExitStack(), "_tracked": copy.copy(self._tracked), "_recording": None}

    def start(self, target: nn.Module, batches: Sequence[int | float], processes: int, rehearsal: bool) -> None:
        """Shadow the target's forward for one pass.

        Args:
            target: the module to listen to.
            batches: number of batches of every loader; infinite where not known.
            processes: how many processes share the samples.
            rehearsal: whether this is the sanity check, where nothing is observed and the user's mistakes are raised.
        """
        self.stop()  # a pass that broke off without notice would be heard twice
        self._batches, self._processes, self._rehearsal = batches, processes, rehearsal
        self._position, self._recording, self.heard = -1, None, False
        hear = torch.compiler.disable(  # type: ignore[no-untyped-call]
            lambda args, kwargs: self.hear(target, args, kwargs)
        )

        def listen(original: loop.Forward, *args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            hear(args, kwargs)
            return output

        self._shadow.enter_context(loop.replaced_forward(target, listen))

    def next_batch(self, share: repeats.Share | None = None) -> None:
        """Count the batches of a pass; ``share`` tells of one that holds samples which another process has too."""
        self._position += 1
        self._share = share

    def stop(self) -> Seen | None:
        """Give the target its forward back; return what was seen in this pass, if anything."""
        self._shadow.close()
        recording, self._recording = self._recording, None
        if recording is None or self.failure is not None or not recording.batches:
            return None
        graph = recording.graph
        return Seen(recording.statistics(), recording.samples, recording.batches, graph.digest, graph.structure)

    def hear(self, target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Look at one call of the target. Only a user's mistake, in a rehearsal before training, stops the run."""
        self.heard = True
        if self.failure is not None:
            return
        try:
            if not self._rehearsal:
                self._observe(target, args, kwargs)
            elif self.example is None:
                # Finds patterns that match nothing now, and not when fit ends.
                place_everywhere(self._prepared(target, args, kwargs), self._scheme)
        except Exception as error:
            if self._rehearsal:
                self.failure = inability(error)
            else:
                self.failure = error if isinstance(error, LqError) else CalibrationError(f"calibration: {error}")

    def _prepared(self, target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Graph:
        graph = self._tracked.prepared(target, args, kwargs)
        self.example = graph.signature.call(graph.example)
        return graph

    def _observe(self, target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if self._recording is None:
            # Of what the observers are about to see. Nothing later tells: weights may be swapped back when a pass ends.
            graph = self._prepared(target, args, kwargs)
            self._recording = Recording.start(graph, self._scheme)
            self._chosen = self._choose(max(graph.samples(graph.signature.flatten(args, kwargs)), 1) * self._processes)
        if self._position in self._chosen:
            graph = self._recording.graph
            tensors = repeats.without(graph.signature.flatten(args, kwargs), graph, self._share)
            if tensors is not None:
                self._recording.see(tensors)

    def _choose(self, samples: int) -> set[int]:
        """Choose which batches of so many samples are observed; the first ones where their number is not known."""
        wanted, total = math.ceil(self._samples / samples), sum(self._batches)
        if math.isinf(total):
            return set(range(wanted))
        order = torch.randperm(int(total), generator=torch.Generator().manual_seed(self._seed))
        return set(order[:wanted].tolist())
