"""Placement by measurement: where INT8 is no faster than FP32, operators that cost more than they gain stay float.

The runtime's profiler says what each operator costs in float and in INT8; what that suggests is exported and measured
as a whole, in turns with FP32 and with the artifact as it was. Only a placement that is faster by more than the noise
is used. Every decision is kept under a digest of what was measured before it is acted on, and read back, so that a run
again gives the same artifacts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeGuard

from torch import Tensor

from lq_plugin import checksums
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.artifacts.digest import artifact_digest
from lq_plugin.artifacts.onnx_gru import LEAST_SPEEDUP
from lq_plugin.artifacts.writing import export_one
from lq_plugin.candidate import Candidate, StaticCandidate
from lq_plugin.coverage import Measured
from lq_plugin.errors import EvaluationError, UnsupportedError, unknown_name
from lq_plugin.evaluation import latency
from lq_plugin.evaluation.latency import Latency
from lq_plugin.evaluation.profiling import profiled
from lq_plugin.printing import counted
from lq_plugin.progress import doing, note
from lq_plugin.search.placements import charged, kind, proposals, sources

PLACEMENTS = ("auto", "runtime")
TIME_LIMIT = 30.0  # seconds after which no further placement is exported
_FLOAT, _AS_PLACED = "FP32", "as placed"


def check_placement(placement: str) -> str:
    """Return a value of the option ``placement``.

    Raises:
        ConfigError: there is no such value.
    """
    if placement not in PLACEMENTS:
        raise unknown_name("placement", str(placement), PLACEMENTS)
    return placement


class _Keys(NamedTuple):
    """What decisions about a candidate in a format are kept under; made once, because all its tensors are hashed."""

    placement: str
    profile: str


@dataclass(frozen=True)
class MeasuredPlacement:
    """Decides by measuring on this machine which operators stay float, for one runtime at a time.

    Args:
        options: how latency is measured.
        decisions: by the digest of what was measured; a new one is kept before it is acted on.
    """

    options: Latency
    decisions: MutableMapping[str, Measured]

    @staticmethod
    def applies(candidate: Candidate | None, format_name: str) -> TypeGuard[StaticCandidate]:
        """Whether a candidate's placement can be measured in a format: it is static, and the runtime has a profiler."""
        return isinstance(candidate, StaticCandidate) and FORMATS[format_name].profile is not None

    def known(self, candidate: Candidate | None, format_name: str) -> Measured | None:
        """Return what was decided earlier about a candidate in a format, if anything was."""
        if not self.applies(candidate, format_name):
            return None
        return self.decisions.get(self._keys(_unmeasured(candidate, format_name), format_name).placement)

    def recalled(self, candidate: StaticCandidate, formats: Sequence[str]) -> StaticCandidate:
        """Return a candidate with the placements that were decided earlier for its formats."""
        for name in formats:
            if (decision := self.known(candidate, name)) is not None:
                candidate = placed_as(candidate, name, decision)
        return candidate

    def decided(
        self, candidate: StaticCandidate, format_name: str, folder: Path, before: tuple[float, float] | None = None
    ) -> StaticCandidate:
        """Return a candidate with the fastest placement found for a format, or as it is.

        Args:
            candidate: a static candidate for whose format nothing was decided yet.
            format_name: one whose runtime has a profiler.
            folder: the candidate's artifact in this format.
            before: milliseconds of a call of FP32 and of that artifact, where they are known.

        Raises:
            EvaluationError: it cannot be measured.
        """
        keys = self._keys(candidate, format_name)
        with tempfile.TemporaryDirectory() as scratch:
            lanes = {_FLOAT: Path(scratch) / _FLOAT, _AS_PLACED: folder}
            if before is None or before[0] < LEAST_SPEEDUP * before[1]:
                _write_float(candidate, format_name, lanes[_FLOAT])
            times = dict(zip(lanes, before, strict=True)) if before else self._times(candidate, format_name, lanes)
            chosen: dict[str, frozenset[str]] = {}
            if times[_FLOAT] < LEAST_SPEEDUP * times[_AS_PLACED]:
                with doing(f"{candidate.name}/{format_name} is no faster than FP32: looking for a faster placement"):
                    saved = self._saved(candidate, format_name, lanes[_FLOAT], folder, keys)
                    chosen = self._proposed(candidate, format_name, saved, lanes, Path(scratch))
                    if chosen:
                        times = self._times(candidate, format_name, lanes)
        self.decisions[keys.placement] = decision = _decision(times, chosen, self.options)
        note(f"{candidate.name}/{format_name}: {decision.reason}")
        return placed_as(candidate, format_name, decision)

    def saved(self, candidate: StaticCandidate, format_name: str, folder: Path) -> Mapping[str, float]:
        """Return the microseconds that INT8 saves by operator, negative where it costs time; empty without a profiler.

        Args:
            candidate: what was exported.
            format_name: the format.
            folder: its artifact.
        """
        if FORMATS[format_name].profile is None:
            return {}
        keys = self._keys(candidate, format_name)
        with tempfile.TemporaryDirectory() as scratch:
            if keys.profile not in self.decisions:
                _write_float(candidate, format_name, Path(scratch))
            return self._saved(candidate, format_name, Path(scratch), folder, keys)

    def _proposed(
        self,
        candidate: StaticCandidate,
        format_name: str,
        saved: Mapping[str, float],
        lanes: dict[str, Path],
        scratch: Path,
    ) -> dict[str, frozenset[str]]:
        """Export what the profile proposes, as far as there is time for it; adds the folders to the lanes."""
        start = time.perf_counter()
        runtime = FORMATS[format_name].runtime
        graph, quantized = candidate.on(runtime).graph, candidate.placed(runtime).quantized.keys()
        kinds = {node.name: kind(node) for node in graph.module.graph.nodes if node.name in quantized}
        chosen: dict[str, frozenset[str]] = {}
        for floats in proposals(kinds, sources(graph, quantized), saved):
            if time.perf_counter() - start > TIME_LIMIT:
                break
            name = f"placement {len(chosen) + 1}"
            made = candidate.with_float(runtime, floats)
            with suppress(UnsupportedError):  # what is left in INT8 is not worth an artifact
                lanes[name] = export_one(made, scratch / name / format_name, format_name, self.options.threads).path
                chosen[name] = floats
        return chosen

    def _saved(
        self, candidate: StaticCandidate, format_name: str, float_folder: Path, folder: Path, keys: _Keys
    ) -> Mapping[str, float]:
        """Microseconds that INT8 saves by operator: as known, else by the profiles of two artifacts."""
        if keys.profile in self.decisions:
            return self.decisions[keys.profile].saved
        tensors, threads = self._inputs(candidate), self.options.number_of_threads
        operators = candidate.placed(FORMATS[format_name].runtime).quantized.keys()
        float_us, int8_us = (
            charged(durations, operators)
            for durations in profiled(format_name, (float_folder, folder), tensors, threads)
        )
        saved = {name: round(float_us[name] - int8_us[name], 3) for name in float_us if name in int8_us}
        self.decisions[keys.profile] = Measured(True, "", saved=saved)
        return saved

    def _times(self, candidate: StaticCandidate, format_name: str, lanes: Mapping[str, Path]) -> dict[str, float]:
        """Milliseconds of a call by lane, measured in turns."""
        given = {name: (format_name, folder) for name, folder in lanes.items()}
        found = latency.measure({}, given, self._inputs(candidate), self.options)
        for name in (_FLOAT, _AS_PLACED):
            if found[name].error is not None:
                raise EvaluationError(f"{name}: {found[name].error}")
        return {name: each.median for name, each in found.items() if each.median is not None}

    def _inputs(self, candidate: StaticCandidate) -> Sequence[Tensor]:
        return candidate.reference.resized(self.options.batch_size)

    def _keys(self, candidate: StaticCandidate, format_name: str) -> _Keys:
        """Digests of what the measurements depend on: the artifact, CPU, threads, and how many samples a call has."""
        artifact = artifact_digest(candidate, format_name, self.options.number_of_threads)
        size = self.options.batch_size
        return _Keys(*(checksums.of_json([what, artifact, size]) for what in ("placement", "profile")))


def _write_float(candidate: StaticCandidate, format_name: str, folder: Path) -> None:
    write = FORMATS[format_name].export
    assert write is not None
    folder.mkdir(exist_ok=True)
    write(candidate.reference, folder)


def placed_as(candidate: StaticCandidate, format_name: str, decision: Measured) -> StaticCandidate:
    """Return a candidate that leaves float on a format's runtime what was decided for it."""
    return candidate.with_float(FORMATS[format_name].runtime, decision.float_ops) if decision.float_ops else candidate


def _unmeasured(candidate: StaticCandidate, format_name: str) -> StaticCandidate:
    """The candidate as the runtime wants it placed."""
    return candidate.with_float(FORMATS[format_name].runtime, ())


def _decision(times: Mapping[str, float], chosen: Mapping[str, frozenset[str]], options: Latency) -> Measured:
    """Decide for the fastest lane, if it is faster than the artifact as it was by more than the noise."""
    floats, before = times[_FLOAT], times[_AS_PLACED]
    best = min((name for name in chosen if name in times), key=times.__getitem__, default=_AS_PLACED)
    gained = best in chosen and before >= LEAST_SPEEDUP * times[best]
    after = times[best] if gained else before
    figures = f"FP32 takes {floats:.3f} ms a call (threads: {options.number_of_threads})"
    if gained:
        left = counted(len(chosen[best]), "operator")
        reason = f"measured here, {after:.3f} ms with {left} in float, {before:.3f} without"
    elif floats >= LEAST_SPEEDUP * before:
        reason = f"measured here, {before:.3f} ms"
    else:
        tried = f"in {counted(len(chosen), 'trial')}, " if chosen else "by its profile, "
        tried += "no operator was faster in float" if chosen else "no operator would be faster in float"
        reason = f"measured here, {before:.3f} ms; {tried}"
    slower = ", so INT8 is slower" if after > floats else ""
    return Measured(after <= floats, f"{reason}; {figures}{slower}", tuple(sorted(chosen[best])) if gained else ())
