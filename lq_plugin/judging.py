"""Compares candidates with the reference on held-out samples: how close they come, and how certain a gain is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lq_plugin.candidate import Candidate
from lq_plugin.graph.sampling import GraphCall
from lq_plugin.graph.torch_patches import isolated

LEAST_GAIN_DB = 0.3  # smaller gains are not worth their risk
# What is less certain may come from few samples: by gains of 0.5 to 2.4 standard errors, face detectors lost up to
# 2.7 dB on other photographs than those that were learnt from.
STANDARD_ERRORS = 2.5
EXACT_DB = 200.0  # used for equal outputs, whose SQNR is infinite


@dataclass(frozen=True)
class Closeness:
    """How close outputs come to the wanted ones.

    Args:
        signal: power of what is wanted, of shape (outputs, samples).
        noise: power of the difference, of the same shape.
    """

    signal: Tensor
    noise: Tensor

    @property
    def decibels(self) -> list[float]:
        """SQNR of each output over all samples."""
        found: list[float] = _decibels(self.signal.sum(1), self.noise.sum(1)).tolist()
        return found

    @property
    def mean(self) -> float:
        """Mean SQNR of the outputs in dB."""
        return sum(self.decibels) / len(self.decibels)


Found = Mapping[str, Closeness]  # by runtime


@dataclass(frozen=True)
class Verdict:
    """On which runtimes a step is kept, and why not on the others."""

    kept_on: tuple[str, ...]
    reason: str


def verdict(before: Found, after: Found) -> Verdict:
    """Decide on which runtimes a step helps for certain, and makes no output worse."""
    kept_on, reasons = [], []
    for runtime in before:
        gain, errors = after[runtime].mean - before[runtime].mean, certainty(before[runtime], after[runtime])
        if not gain >= LEAST_GAIN_DB:
            reasons.append(f"{gain:+.2f} dB on {runtime}; at least +{LEAST_GAIN_DB} dB is needed")
        elif not errors >= STANDARD_ERRORS:
            told = f"{gain:+.2f} dB on {runtime} is uncertain: {errors:.1f} standard errors"
            reasons.append(f"{told}; at least {STANDARD_ERRORS} are needed")
        elif min(after[runtime].decibels) < min(before[runtime].decibels):
            reasons.append(f"the worst output loses accuracy on {runtime}")
        else:
            kept_on.append(runtime)
    return Verdict(tuple(kept_on), ", ".join(reasons))


def certainty(before: Closeness, after: Closeness) -> float:
    """Return by how many standard errors, over samples, the noise has fallen: the t of a paired test.

    Returns:
        Infinity where there is a single sample, or where all fall alike.

    Source: Student, "The Probable Error of a Mean" (1908).
    """
    fallen = ((before.noise - after.noise) / before.noise.sum(1, keepdim=True)).nan_to_num().mean(0)
    if len(fallen) == 1:
        return math.copysign(math.inf, fallen.item())
    return float(fallen.mean() / (fallen.std() / math.sqrt(len(fallen))))


@dataclass(frozen=True)
class Judge:
    """Compares the outputs of candidates with the reference, on held-out samples.

    Args:
        calls: the samples, as calls of the graph.
        counts: number of samples of each call.
        wanted: floating-point outputs of the reference in each call.
    """

    calls: Sequence[GraphCall]
    counts: Sequence[int]
    wanted: Sequence[Sequence[Tensor]]

    @classmethod
    def of(cls, candidate: Candidate, calls: Sequence[GraphCall]) -> Judge:
        graph = candidate.reference
        return cls(calls, [graph.samples(call) for call in calls], outputs(graph.module, calls))

    def on_runtimes(self, candidate: Candidate, runtimes: Sequence[str]) -> Found:
        """What a candidate returns in INT8 on runtimes."""
        return {runtime: self._closeness(candidate.in_torch(runtime)) for runtime in runtimes}

    def in_float(self, candidate: Candidate) -> Closeness:
        """What the candidate's own float graph returns."""
        return self._closeness(candidate.graph.module)

    def _closeness(self, module: Callable[..., Sequence[Tensor]]) -> Closeness:
        parts: list[tuple[Tensor, Tensor]] = []
        for ours, theirs, count in zip(outputs(module, self.calls), self.wanted, self.counts, strict=True):
            pairs = list(zip(ours, theirs, strict=True))
            divisible = all(wanted.dim() and len(wanted) == count for _, wanted in pairs)
            parts.append(_powers(pairs, count if divisible else 1))
        signal, noise = (torch.cat(side, 1) for side in zip(*parts, strict=True))
        return Closeness(signal, noise)


def outputs(module: Callable[..., Sequence[Tensor]], calls: Sequence[GraphCall]) -> list[Sequence[Tensor]]:
    """The floating-point outputs of each call."""
    with isolated(), torch.no_grad():
        return [[tensor for tensor in module(*given) if tensor.is_floating_point()] for given in calls]


def _powers(pairs: Sequence[tuple[Tensor, Tensor]], samples: int) -> tuple[Tensor, Tensor]:
    """Power of the wanted outputs and of the differences, of shape (outputs, samples)."""
    signal, noise = list[Tensor](), list[Tensor]()
    for given, wanted in pairs:
        finite = wanted.isfinite()  # a mask may put infinity there
        for powers, values in ((signal, wanted), (noise, given.double() - wanted.double())):
            powers.append(torch.where(finite, values, 0).double().square().view(samples, -1).sum(1))
    return torch.stack(signal), torch.stack(noise)


def _decibels(signal: Tensor, noise: Tensor) -> Tensor:
    """SQNR as finite numbers, also where nothing but zeros is wanted, or nan is given."""
    ratio = torch.nan_to_num(10 * torch.log10(signal / noise), nan=-EXACT_DB).clamp(-EXACT_DB, EXACT_DB)
    return torch.where(noise == 0, EXACT_DB, torch.where(noise.isfinite(), ratio, -EXACT_DB))
