"""``manifest.json``: everything that was made, measured and decided, with checksums. Schema version 1.

The dataclasses here are its schema: what a run writes, and what a reader may rely on. They need neither torch nor
Lightning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lq_plugin.coverage import FloatOp, QuantizedOp
from lq_plugin.durable import replace_file
from lq_plugin.learning import AlgorithmStep, Sensitivity, Trial, ValueRange
from lq_plugin.report.decoder import REQUIRED, decode, encode
from lq_plugin.report.limits import (
    Below,
    ContentError,
    Count,
    FileName,
    Milliseconds,
    Name,
    Ratio,
    Sentence,
    Sha256,
    Size,
    Table,
    Version,
    WeightsSize,
    check_tree,
    few_bins,
    few_options,
    is_a,
    not_many,
    number,
    one_of,
)
from lq_plugin.selection import MODES, Budget
from lq_plugin.untrusted import read_json

if TYPE_CHECKING:
    from lq_plugin.artifacts.description import Artifact

FILE = "manifest.json"
SCHEMA_VERSION = 1
STATUSES = ("ok", "over_budget", "not_evaluated", "failed", "unsupported")
EAGER = "torch"  # the runtime that FP32 is measured on in any case
_COMPUTABLE = (1e-100, 1e100)  # sizes of numbers whose differences and quotients fit a float


def _check_budget(value: Any, where: str) -> None:
    if value is not None:
        decode(_ResolvedBudget, value, where)


@dataclass(frozen=True)
class LatencyRecord:
    """How long an artifact takes for a call.

    Args:
        median: half of the calls were faster, in milliseconds.
        p90: nine in ten calls were faster, in milliseconds.
        batch_size: samples in a call.
        threads: of the runtime.
        rounds: turns in which it was measured.
        calls: how many were measured.
        mode: how the runtime ran, such as ``"torch.compile"``.
    """

    median: Milliseconds
    p90: Milliseconds | None = None
    batch_size: Count | None = None
    threads: Count | None = None
    rounds: int | None = None
    calls: int | None = None
    mode: str | None = None


@dataclass(frozen=True)
class Kernels:
    """The kernels that a runtime uses for the convolutions, products and recurrent layers of an artifact.

    Args:
        int8: names of the INT8 kernels by type, both as in the runtime's optimized graph.
        float: the same of the float kernels.
        fell_back: how many operators were placed in INT8 but run in float, by type, such as ``{"conv2d": 2}``, or
            ``{"linear/matmul": 1}`` if these cannot be told apart. Operators whose names the runtime has kept are not
            counted here, but listed in the entry's ``float_ops``.
    """

    int8: Table[tuple[str, ...]]
    float: Table[tuple[str, ...]]
    fell_back: Table[Count] = field(default_factory=dict)


@dataclass(frozen=True)
class Speedup:
    """How many times as fast an artifact is as FP32: in eager torch, and on the runtime that is fastest with FP32."""

    vs_torch_fp32: Ratio | None = None
    vs_best_fp32: Ratio | None = None


@dataclass(frozen=True)
class Fp32:
    """The float model that artifacts are compared with: of the same target and weights.

    Args:
        metrics: of validation and test, by name.
        size_bytes: of its weights.
        latency_ms: median, by runtime: eager ``torch``, and each that an artifact uses.
        errors: why a runtime has none.
    """

    metrics: Annotated[Table[float], REQUIRED] = field(default_factory=dict)
    size_bytes: Annotated[WeightsSize | None, REQUIRED] = None
    latency_ms: Annotated[Table[Milliseconds], REQUIRED] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> float | None:
        """The latency of the runtime that is fastest with it."""
        return min(self.latency_ms.values(), default=None)

    def speedup(self, median: float) -> Speedup:
        """Return how many times as fast as FP32 a call of so many milliseconds is."""
        eager, best = self.latency_ms.get(EAGER), self.best
        return Speedup(eager and eager / median, best and best / median)


@dataclass(frozen=True)
class Entry:
    """The outcome of one candidate in one format: an artifact, unless it could not be made.

    It is built up in steps by ``dataclasses.replace``: named, then exported, measured and judged.

    Args:
        candidate: the candidate's name.
        method: its scheme's method.
        runtime: what executes the artifact.
        format: the format asked for.
        path: the artifact's folder, below the manifest's, with ``/``.
        sha256: of its files, by their names.
        size_bytes: of its files.
        metrics: what the module logs with the artifact, and the metrics asked for, by name.
        delta: the same minus FP32.
        fp32: what it is compared with; ``None`` where nothing was measured.
        latency_ms: how long it takes.
        speedup: over FP32.
        sqnr_db: fidelity of the outputs to FP32 on validation data.
        reload_max_difference: largest difference between the outputs here and those of a new process; ``None`` for a
            format that needs the user's class, which a new process does not have.
        quantized_ops: the operators that compute on integers.
        float_ops: those that stay float, and why.
        kernels: what the runtime computes them with; ``None`` where it does not tell, or nothing was measured.
        placement: which operators go back to float because of their speed on this machine, and what was measured;
            ``None`` where ``ArtifactExport(placement="auto")`` has measured nothing. A winner of the search for mixed
            precision keeps what was measured about the artifact that it replaces, and says so.
        status: ``ok`` or ``over_budget`` as the budget judged its validation figures, ``not_evaluated`` where nothing
            judged it, ``failed`` where it could not be made or run, or ``unsupported`` where the model or the
            format does not allow what is asked, such as a target without an operator that can be quantized.
        error: why it failed, why something was not measured, or why nothing judged it.
    """

    candidate: Name
    method: Name
    runtime: Name
    format: Name
    path: Below | None = None
    sha256: Annotated[Mapping[FileName, Sha256], not_many] = field(default_factory=dict)
    size_bytes: Annotated[Size | None, REQUIRED] = None
    metrics: Annotated[Table[float], REQUIRED] = field(default_factory=dict)
    delta: Annotated[Table[float], REQUIRED] = field(default_factory=dict)
    fp32: Fp32 | None = None
    latency_ms: Annotated[LatencyRecord | None, REQUIRED] = None
    speedup: Annotated[Speedup | None, REQUIRED] = None
    sqnr_db: Annotated[float | None, REQUIRED] = None
    reload_max_difference: float | None = None
    quantized_ops: tuple[QuantizedOp, ...] = ()
    float_ops: tuple[FloatOp, ...] = ()
    kernels: Kernels | None = None
    placement: str | None = None
    status: Annotated[str, one_of(*STATUSES), REQUIRED] = "not_evaluated"
    error: Annotated[str | None, REQUIRED] = None

    @property
    def label(self) -> str:
        """What identifies it in a run: ``<candidate>/<format>``."""
        return f"{self.candidate}/{self.format}"

    @property
    def median(self) -> float | None:
        """Half of its calls were faster, in milliseconds."""
        return self.latency_ms.median if self.latency_ms else None

    @property
    def figures(self) -> dict[str, float | None]:
        """Its metrics, and ``latency_ms`` (the median), ``size_bytes`` and ``sqnr_db``."""
        cost = {"size_bytes": self.size_bytes, "sqnr_db": self.sqnr_db, "latency_ms": self.median}
        return {**self.metrics, **cost}

    @property
    def slower_than_fp32(self) -> bool:
        """Whether FP32 is faster on the runtime that is fastest with it."""
        return self.speedup is not None and self.speedup.vs_best_fp32 is not None and self.speedup.vs_best_fp32 < 1

    def larger_than(self, fp32: Fp32) -> bool:
        """Whether it takes more bytes than the float weights."""
        return self.size_bytes is not None and self.size_bytes > (fp32.size_bytes or float("inf"))

    def drop(self, budget: Budget) -> float | None:
        """Return the drop of a budget's metric, in the budget's terms; ``None`` where that is no number."""
        value, change = (computable(of.get(budget.metric or "")) for of in (self.metrics, self.delta))
        return None if value is None or change is None else computable(budget.drop(value - change, value))

    def compared(self, metrics: Mapping[str, float], fp32: Fp32) -> Entry:
        """Return it with its metrics, and their differences from FP32."""
        delta = {name: value - fp32.metrics[name] for name, value in metrics.items() if name in fp32.metrics}
        return replace(self, metrics=metrics, delta=delta, fp32=fp32)

    def exported(self, artifact: Artifact, root: Path) -> Entry:
        """Return it with the data of its artifact.

        Args:
            artifact: below the root.
            root: the manifest's folder.
        """
        return replace(
            self,
            path=artifact.path.relative_to(root).as_posix(),
            sha256=dict(artifact.files),
            size_bytes=artifact.size_bytes,
            quantized_ops=tuple(QuantizedOp(**op) for op in artifact.quantized_ops),
            float_ops=tuple(FloatOp(**op) for op in artifact.float_ops),
        )


@dataclass(frozen=True)
class _ResolvedBudget:
    """What a manifest holds of a :class:`Budget`; its own hints are those of an option, without limits."""

    metric: Name | None
    max_drop: Annotated[float, is_a("a number, 0 or more", number(0, 1e100))]
    relative: bool
    mode: Annotated[str, one_of(*MODES)] | None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Versions of what was used, the CPU and its relevant instruction sets."""

    versions: Mapping[str, str] = field(default_factory=dict)
    cpu: Name
    cores: int | None = None
    threads: int | None = None
    isa: tuple[str, ...] = ()
    platform: str = ""


@dataclass(frozen=True)
class Config:
    """The options of a run: of each callback, of the whole run where it was configured as one, and its command."""

    quantization: Mapping[str, Any] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = field(default_factory=dict)
    command: Annotated[tuple[str, ...], not_many] = ()

    @property
    def options(self) -> Mapping[str, Any]:
        """Those of the whole run, which include all the others, or else those of the callbacks."""
        return self.run or {"quantization": self.quantization, "export": self.export, "evaluation": self.evaluation}

    @property
    def model(self) -> str:
        """Import path of the model's class, as a configured run records it."""
        model = (self.run or {}).get("model")
        return str(model.get("_target_", "model")) if isinstance(model, Mapping) else "model"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a ``manifest.json``.

    Args:
        schema_version: of these types.
        fp32: the float model of the first target.
        artifacts: every candidate in every format.
        selected: label of the fastest artifact within the budget; none that is slower than the fastest FP32 runtime.
        unselected: why there is none although an artifact is within the budget.
        budget: the one that artifacts were judged by; ``None`` where nothing was evaluated.
        calibration: where each candidate's weights and statistics come from, and what its algorithms learnt from, by
            the candidate's name.
        notes: what the graph of a candidate leaves out of the forward or fixes, that its weights had another
            precision, and what its artifacts' folders lack, as sentences, by the candidate's name.
        steps: every algorithm that was requested, in the order in which they ran.
        sensitivity: what each INT8 operator costs at the outputs, the most costly one first, by the candidate's name;
            for static candidates that are over the budget or that algorithms ran for.
        ranges: of every value that a static candidate quantizes, those that clip most first, by its name.
        trials: all trials of a search for mixed precision, in the order in which they ran.
        environment: what all of it was measured with.
        seed: the one given to Lightning.
        config: the options of the run.
    """

    schema_version: Version = SCHEMA_VERSION
    fp32: Annotated[Fp32, REQUIRED] = field(default_factory=Fp32)
    artifacts: Annotated[
        tuple[Entry, ...], is_a("a list of at least one", lambda v: isinstance(v, list) and len(v) > 0), not_many
    ]
    selected: Annotated[str | None, REQUIRED] = None
    unselected: str | None = None
    budget: Annotated[Budget | None, _check_budget, REQUIRED] = None
    calibration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Table[Annotated[tuple[Sentence, ...], not_many]] = field(default_factory=dict)
    steps: Annotated[tuple[AlgorithmStep, ...], not_many] = ()
    sensitivity: Table[tuple[Sensitivity, ...]] = field(default_factory=dict)
    ranges: Table[Annotated[tuple[ValueRange, ...], not_many, few_bins]] = field(default_factory=dict)
    trials: Annotated[tuple[Trial, ...], not_many] = ()
    environment: Environment
    seed: int | None = None
    config: Annotated[Config, few_options, REQUIRED] = field(default_factory=Config)

    @property
    def chosen(self) -> Entry | None:
        """The artifact that was selected."""
        return next((entry for entry in self.artifacts if entry.label == self.selected), None)

    def fp32_of(self, entry: Entry) -> Fp32:
        """Return the float model that an artifact is compared with."""
        return entry.fp32 or self.fp32

    @classmethod
    def from_json(cls, content: Any) -> Manifest:
        """Return the content of a file, checked.

        Raises:
            ContentError: naming the first invalid place.
        """
        check_tree(content)
        version = decode(_Versioned, content).schema_version
        if version > SCHEMA_VERSION:
            raise ContentError(
                f"its schema_version {version} is newer than {SCHEMA_VERSION}, the newest that this lq_plugin "
                "reads; install a newer lq_plugin"
            )
        made: Manifest = decode(cls, content)
        return made

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file, as builtins."""
        return dict(encode(self))


@dataclass(frozen=True)
class _Versioned:
    schema_version: Version


def computable(value: float | None) -> float | None:
    """Return a figure to compute with; ``None`` for nan, infinity, and what is too large or small for its quotients."""
    smallest, largest = _COMPUTABLE
    return value if value is not None and (value == 0 or smallest <= abs(value) <= largest) else None


def write(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest in one step: a reader sees the old one or the new one."""
    return replace_file(folder / FILE, json.dumps(manifest.to_json(), indent=1, allow_nan=False))


def read(file: Path) -> Manifest:
    """Return the content of an untrusted manifest.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file of JSON; the message continues the file's name.
        ContentError: it is not a manifest that this version understands.
    """
    return Manifest.from_json(read_json(file))
