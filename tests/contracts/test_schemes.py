"""Every value of a scheme works on every runtime: the options are not promises of one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import images, network

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise

LEAST_DB = 25.0  # seen: 29 and more


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(weight_symmetric=False),
        Scheme(weight_symmetric=False, weight_granularity="per_tensor"),
        Scheme(weight_granularity="per_tensor", activation_symmetric=True),
        Scheme(activation_dtype="int8", reduce_range=True),
        Scheme(activation_dtype="int8", activation_symmetric=True, reduce_range=True),
    ],
    ids=lambda scheme: f"{scheme.weight_granularity}-{scheme.weight_symmetric}-{scheme.activation_dtype}",
)
def test_every_runtime_computes_what_the_scheme_says(scheme: Scheme, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = network().eval(), images(48).tensors[0]
    artifacts = lq_plugin.export(lq_plugin.quantize(model, [x], replace(scheme, algorithms=())), tmp_path)
    with torch.no_grad():
        reference = model(x)
    for name, artifact in artifacts.items():
        sqnr = SignalToQuantizationNoise()
        sqnr.update(lq_plugin.load(artifact.path)(x), reference)
        assert sqnr.compute() > LEAST_DB, name
