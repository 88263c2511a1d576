"""What executes artifacts, and what its INT8 kernels want: a runtime is one record of a literal table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lq_plugin.graph.operators import (
    CLIPPING,
    CONVOLUTIONS,
    ELEMENTWISE,
    POINTWISE,
    POOLINGS,
    PRODUCTS,
    TRANSPOSED_CONVOLUTIONS,
)
from lq_plugin.qparams import QuantSpec
from lq_plugin.scheme import Scheme

_UNSIGNED = QuantSpec(signed=False)  # fastest on x86


@dataclass(frozen=True)
class Runtime:
    """What one runtime needs for its INT8 kernels.

    Args:
        fuses: activations that its kernels compute on an operator's result before quantizing it.
        quantized_outputs: operators whose INT8 kernel is chosen only when their result is quantized too.
        equal_scales: operators whose INT8 kernel wants one scale for all its inputs and its result. Where they differ,
            the runtime requantizes inputs in operators of their own.
        moves_integers: whether operators that only pass values on, such as a slice, move integers where their input
            was quantized. What an INT8 kernel gives to them is then quantized before, in that kernel.
        dynamic: operators that it computes on integers with a scale from each batch.
        dynamic_around_float_layers: whether a dynamic artifact is worth having where recurrent layers stay float.
        stays_float: operators that are not worth INT8 on it, and why. ``"grouped conv_transpose2d"`` are those with
            groups of channels, ``"matmul of activations"`` are products without a constant factor, ``"partial mean"``
            is one that leaves some of an image's positions. docs/kernels.md has the same table.
        activations: which integers its kernels take for activations if the scheme does not say.
    """

    fuses: frozenset[str]
    quantized_outputs: frozenset[str] = frozenset()
    equal_scales: frozenset[str] = frozenset()
    moves_integers: bool = False
    dynamic: frozenset[str] = frozenset()
    dynamic_around_float_layers: bool = True
    stays_float: Mapping[str, str] = field(default_factory=dict)
    activations: QuantSpec = _UNSIGNED


RUNTIMES: Mapping[str, Runtime] = {
    "onnxruntime": Runtime(
        fuses=CLIPPING,
        quantized_outputs=CONVOLUTIONS | ELEMENTWISE | POOLINGS,
        dynamic=PRODUCTS | {"lstm", "gru"},
        # Around a float kernel, quantize/dequantize pairs and integer weights only cost: a decoder of transposed
        # convolutions took 2.1 times as long (1.32, one thread) and lost 7.7 dB; a U-Net took the same time.
        stays_float={
            **dict.fromkeys(TRANSPOSED_CONVOLUTIONS, "onnxruntime has no INT8 kernel for transposed convolutions"),
            "partial mean": "onnxruntime has no INT8 kernel for a mean over some of the positions",
            "lstm": "onnxruntime has an INT8 kernel for LSTMs only in dynamic quantization",
        },
    ),
    "openvino": Runtime(
        fuses=POINTWISE,
        equal_scales=frozenset({"cat"}),
        moves_integers=True,
        dynamic=PRODUCTS,
        dynamic_around_float_layers=False,
        stays_float={
            **dict.fromkeys(
                (f"grouped {name}" for name in sorted(TRANSPOSED_CONVOLUTIONS)),
                "openvino has no INT8 kernel for grouped transposed convolutions",
            ),
            # It computes a whole float attention in one kernel. With these products in INT8 an encoder took 15 to 17 %
            # longer (2026.4, AVX512-VNNI). On onnxruntime INT8 takes the same time as float.
            **dict.fromkeys(
                ("matmul of activations", "bmm of activations"),
                "a product of two activations: openvino computes attention faster in float",
            ),
        },
    ),
    "torch": Runtime(
        fuses=POINTWISE,
        # With freezing, torch.compile (2.13) takes them for ordinary convolutions: wrong results, without an error.
        stays_float={
            **dict.fromkeys(TRANSPOSED_CONVOLUTIONS, "torch.compile computes transposed convolutions wrongly in INT8"),
            "lstm": "torch has an INT8 kernel for LSTMs only in dynamic quantization",
        },
    ),
}


def activations(scheme: Scheme, runtime: str) -> QuantSpec:
    """Return which integers activations become: what the scheme says, else what the runtime's kernels want.

    Example:
        >>> activations(Scheme(activation_dtype="int8"), "openvino")
        QuantSpec(bits=8, signed=True, symmetric=False, per_channel=False)
    """
    wanted = RUNTIMES[runtime].activations
    if scheme.activation_dtype is not None:
        wanted = replace(wanted, signed=scheme.activation_dtype == "int8")
    if scheme.activation_symmetric is not None:
        wanted = replace(wanted, symmetric=scheme.activation_symmetric)
    return wanted
