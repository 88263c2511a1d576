"""What is quantized and how: frozen data, validated when built. The only place where defaults of a scheme live."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lq_plugin import cpu
from lq_plugin.errors import ConfigError, unknown_name
from lq_plugin.observers import OBSERVERS, Observer
from lq_plugin.options import check_type, check_types
from lq_plugin.qparams import QuantSpec

DEFAULT_OBSERVER = "histogram"
ACTIVATION_DTYPES = ("uint8", "int8")
GRANULARITIES = ("per_channel", "per_tensor")
TARGETS_CPU = ("this", "any", "vnni")
AUTO = "auto"


@dataclass(frozen=True)
class _Method:
    """A method's defaults, its algorithms in the order in which they run, and what no scheme can change."""

    observer: str | None
    embeddings: bool
    algorithms: tuple[str, ...]
    fixed: Mapping[str, Any]


_METHODS: Mapping[str, _Method] = {
    "static": _Method(
        observer=DEFAULT_OBSERVER,
        embeddings=True,
        algorithms=("equalization", "smoothing", "ranges", "sequential"),
        fixed={},
    ),
    # Its kernels take the range of each batch themselves, as uint8.
    "dynamic": _Method(
        observer=None,
        embeddings=False,
        algorithms=("rounding",),
        fixed={"observer": None, "activation_dtype": "uint8", "activation_symmetric": False, "weight_symmetric": True},
    ),
}
METHODS = tuple(_METHODS)
ALGORITHMS = tuple(name for method in _METHODS.values() for name in method.algorithms)


@dataclass(frozen=True)
class Scheme:
    """What is quantized and how.

    Args:
        method: ``"static"``: scales of activations are fixed ahead of time from calibration. ``"dynamic"``: they are
            computed from each batch at run time, and nothing is calibrated.
        observer: how a range is learnt from the values observed: a name of ``observers.OBSERVERS`` or an observer;
            ``"histogram"`` by default. Dynamic has none.
        activation_dtype: ``"uint8"`` or ``"int8"``; by default what the kernels of each runtime want.
        activation_symmetric: zero point in the middle of the range instead of where it fits best; by default as the
            kernels of each runtime want it.
        weight_granularity: one scale for each output channel, or one for the tensor. Weights are int8.
        weight_symmetric: zero point 0 (fastest) instead of where it fits best.
        reduce_range: weights use 7 of their 8 bits. On x86 CPUs without VNNI, kernels add products in pairs in 16
            bits and saturate with 8-bit weights; with 7 bits they cannot. By default ``targets_cpu`` decides.
        embeddings: whether look-up tables are quantized too; by default for static, and not for dynamic.
        skip: what stays float: globs over module names (``"head"``, ``"encoder.layers.0.*"``) and operator types
            written ``"op:conv2d"``.
        only: where given, nothing else is quantized. The same patterns as in ``skip``.
        targets_cpu: which CPUs the artifacts are for, where ``reduce_range`` is not given: ``"this"`` machine's,
            ``"any"`` (7 bits), or those with ``"vnni"`` (8 bits).
        algorithms: algorithms that make INT8 more accurate: names of ``lq_plugin.algorithms``, ``"auto"`` (default) for
            all of the method, or ``[]`` for none. They run in a fixed order, and each is kept only if it brings the
            outputs closer to FP32 on held-out samples.
        algorithm_samples: how many samples they get: three quarters to learn from, one quarter held out. No labels are
            needed.
        algorithm_time_limit: seconds after which no further algorithm is started; ``None`` for no limit.

    Raises:
        ConfigError: a value is not allowed; the message names the nearest allowed one.

    Example:
        >>> Scheme(observer="percentile", skip=["head"]).observer
        PercentileObserver(percentile=99.99)
    """

    method: str = "static"
    observer: Observer | str | None = None
    activation_dtype: str | None = None
    activation_symmetric: bool | None = None
    weight_granularity: str = "per_channel"
    weight_symmetric: bool = True
    reduce_range: bool | None = None
    embeddings: bool | None = None
    skip: Sequence[str] = ()
    only: Sequence[str] = ()
    targets_cpu: str = "this"
    algorithms: Sequence[str] | str | None = None
    algorithm_samples: int = 256
    algorithm_time_limit: float | None = 120.0

    def __post_init__(self) -> None:
        check_types(self)
        for field, allowed in (
            ("method", METHODS),
            ("activation_dtype", ACTIVATION_DTYPES),
            ("weight_granularity", GRANULARITIES),
            ("targets_cpu", TARGETS_CPU),
        ):
            given = getattr(self, field)
            if given not in allowed and not (field == "activation_dtype" and given is None):
                raise unknown_name(field, str(given), allowed)
        method = _METHODS[self.method]
        _check_fixed(self, method.fixed)
        if method.observer is not None:
            object.__setattr__(self, "observer", _observer(method.observer if self.observer is None else self.observer))
        if self.embeddings is None:
            object.__setattr__(self, "embeddings", method.embeddings)
        if self.reduce_range is None:
            object.__setattr__(self, "reduce_range", _reduced_for(self.targets_cpu))
        for field in ("skip", "only"):
            object.__setattr__(self, field, _patterns(field, getattr(self, field)))
        given = AUTO if self.algorithms is None else self.algorithms
        check_type("algorithms", given, str, Sequence)
        object.__setattr__(self, "algorithms", _algorithms(given, self.method))
        _check_limits(self)

    @property
    def algorithm_names(self) -> tuple[str, ...]:
        """The algorithms that are tried, in the order in which they run."""
        assert self.algorithms is not None
        return _METHODS[self.method].algorithms if self.algorithms == AUTO else tuple(self.algorithms)

    @property
    def weights(self) -> QuantSpec:
        """Which integers weights become."""
        per_channel = self.weight_granularity == "per_channel"
        return QuantSpec(7 if self.reduce_range else 8, symmetric=self.weight_symmetric, per_channel=per_channel)


def _check_fixed(scheme: Scheme, fixed: Mapping[str, Any]) -> None:
    for field, value in fixed.items():
        if getattr(scheme, field) not in (value, getattr(Scheme, field)):
            raise ConfigError(
                f"{field}: {getattr(scheme, field)!r} is not available for {scheme.method} quantization, whose kernels "
                "take the range of each batch as uint8. Leave it out, or use method='static'."
            )


def _reduced_for(targets_cpu: str) -> bool:
    """Whether weights are limited to 7 bits on the CPUs that artifacts are for."""
    return {"this": cpu.saturates(), "any": True, "vnni": False}[targets_cpu]


def _observer(given: Observer | str) -> Observer:
    if isinstance(given, Observer):
        return given
    if not isinstance(given, str) or given not in OBSERVERS:
        raise unknown_name("observer", str(given), OBSERVERS)
    return OBSERVERS[given]()


def _algorithms(given: Sequence[str] | str, method: str) -> tuple[str, ...] | str:
    """Return the names in the order in which algorithms run."""
    available = _METHODS[method].algorithms
    names = available if given == AUTO else (given,) if isinstance(given, str) else given
    if unknown := [name for name in names if name not in ALGORITHMS]:
        raise unknown_name("algorithms", str(unknown[0]), (AUTO, *available))
    if other := [name for name in names if name not in available]:
        raise ConfigError(
            f"algorithms: {other[0]!r} is not available for {method} quantization. Allowed: "
            f"{', '.join(map(repr, (AUTO, *available)))}."
        )
    return AUTO if given == AUTO else tuple(name for name in available if name in names)


def _check_limits(scheme: Scheme) -> None:
    if scheme.algorithm_samples < 1:
        raise ConfigError(f"algorithm_samples: {scheme.algorithm_samples} is too small. Allowed: 1 or more.")
    if scheme.algorithm_time_limit is not None and not scheme.algorithm_time_limit >= 0:
        raise ConfigError(
            f"algorithm_time_limit: {scheme.algorithm_time_limit} is not allowed. Give seconds, 0 or more, or None."
        )


def _patterns(field: str, given: Any) -> tuple[str, ...]:
    if (
        isinstance(given, str)
        or not isinstance(given, Iterable)
        or not all(isinstance(pattern, str) and pattern for pattern in given)
    ):
        raise ConfigError(
            f"{field}: {given!r} is not a list of patterns. Write for example {field}=['head', 'op:add']."
        )
    return tuple(given)


def as_dict(scheme: Scheme) -> dict[str, Any]:
    """The scheme as builtins, for manifests: ``{"method": "static", "observer": {"name": "histogram"}, ...}``."""
    assert not isinstance(scheme.observer, str)
    observer = scheme.observer
    return dataclasses.asdict(scheme) | {
        "observer": None if observer is None else {"name": observer.name, **dataclasses.asdict(observer)},
        "skip": list(scheme.skip),
        "only": list(scheme.only),
        "algorithms": AUTO if scheme.algorithms == AUTO else list(scheme.algorithms or ()),
    }
