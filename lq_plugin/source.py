"""Where candidates come from and where they are judged: a module with the weights of one checkpoint, and its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

from torch import nn

from lq_plugin.checkpoints import Checkpoint, with_weights
from lq_plugin.errors import UnsupportedError
from lq_plugin.evaluation import loop
from lq_plugin.evaluation.loaders import chosen_batches, observed_pass
from lq_plugin.evaluation.loop import Data
from lq_plugin.graph.copying import detached_copy
from lq_plugin.graph.example import Example, varying_in
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.observation import Begin
from lq_plugin.graph.precision import cast_inputs, casting, float32_copy, is_other
from lq_plugin.graph.sampling import Draw, Samples, drawn_batches
from lq_plugin.identity import weights_digest
from lq_plugin.targets import forward_of, never_called, resolve_target


class Source:
    """One target with the weights of one checkpoint. Opened at first use, so one that fails does not stop the others.

    Args:
        module: the LightningModule, which is not changed.
        target: dotted path of the module that is quantized; the LightningModule itself for ``None``.
        read: reads the checkpoint.
        data: the batches of the splits.

    Attributes:
        notes: what was changed of the model when it was opened, as sentences for the user.
    """

    def __init__(self, module: nn.Module, target: str | None, read: Callable[[], Checkpoint], data: Data) -> None:
        self.target, self.data = target, data
        self._module, self._read = module, read
        self.notes: tuple[str, ...] = ()
        self._samples: dict[tuple[str, str, int, int], Samples] = {}

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint.

        Raises:
            ConfigError: it cannot be read.
        """
        return self._read()

    @cached_property
    def model(self) -> nn.Module:
        """A copy of the LightningModule with these weights, in float32 and eval mode on the CPU.

        Raises:
            ConfigError: the weights belong to another model.
        """
        model = with_weights(self._module, self.checkpoint)
        if is_other(model):
            self.notes = (casting(model),)
            model = float32_copy(model)
            cast_inputs(resolve_target(model, self.target))
        return model

    @property
    def float_target(self) -> nn.Module:
        """The target with these weights."""
        return resolve_target(self.model, self.target)

    @cached_property
    def digest(self) -> str:
        """Identifies the weights; a file name cannot, because two ModelCheckpoints may use the same one."""
        return weights_digest(self.model)

    def float_copy(self) -> nn.Module:
        """Return a copy of the float target, for artifacts that need the user's class around them."""
        return detached_copy(self.float_target)

    def observed_pass(self, begin: Begin) -> None:
        """Run one validation pass, observed; see :func:`lq_plugin.graph.observation.calibrate_pass`."""
        observed_pass(self.model, self.data, begin)

    def example(self, option_of: str) -> Example:
        """Return the first call of the target in validation, and in which dimensions others differ.

        All of validation is run to find these, unless the checkpoint says which they are.

        Args:
            option_of: class of the callback whose option the target is, for the error.

        Raises:
            UnsupportedError: the target is never called.
        """
        known = varying_in(self.checkpoint.callbacks.values(), self.target)
        forward, seen = forward_of(self.float_target), list[Example]()

        def remember(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            seen[:] = [seen[0].seeing(forward, args, kwargs) if seen else Example.of(forward, args, kwargs, known)]

        if "validate" in loop.splits_of(self.model, self.data):
            data = self.data if known is None else self.data.limited("validate", 1)  # of each loader
            chosen_batches(self.model, data, self.target, None, remember)
        if not seen:
            raise UnsupportedError(self.never_called(option_of))
        return seen[0]

    def samples(self, graph: Graph, count: int, seed: int) -> Samples:
        """Draw samples of the target's inputs from the validation data.

        Args:
            graph: the target's graph.
            count: how many samples.
            seed: of the draw.
        """
        sizes = str([structure["shape"] for _, structure in graph.signature.tensors()])  # no part of the digest
        key = (graph.digest, sizes, count, seed)
        if key not in self._samples:
            self._samples[key] = self._drawn(graph, count, seed)
        return self._samples[key]

    def _drawn(self, graph: Graph, count: int, seed: int) -> Samples:
        draw, every, chosen = Draw(graph, count, seed), math.inf, set[int]()
        # The example of a batch of one is doubled, so two may be one.
        size = 1 if graph.batch_size == 2 else graph.batch_size

        def choose(batches: Sequence[int | float]) -> Set[int]:
            nonlocal every, chosen
            every = sum(batches)
            chosen = drawn_batches(batches, Draw.calls_for(count, size), seed, last=True)
            return chosen

        chosen_batches(self.model, self.data, self.target, choose, draw.see)
        total = None if math.isinf(every) else round(draw.samples_seen * every / max(1, len(chosen)))
        samples = draw.drawn(total)
        if draw.refused is not None and not samples.learn:  # it says why there is nothing to learn from
            raise draw.refused
        return samples

    @property
    def has_test_split(self) -> bool:
        """Whether there is a test split, which nothing is fitted to or chosen by."""
        return "test" in loop.splits_of(self.model, self.data)

    def never_called(self, option_of: str) -> str:
        """Say that no validation step calls the target, and what could be chosen in its place.

        Args:
            option_of: class of the callback whose option the target is.
        """
        return never_called(self.model, self.target, "validation_step", option_of)
