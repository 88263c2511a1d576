"""INT8 for PyTorch Lightning: calibrated in the training loop, measured on what ships."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lq_plugin.artifacts.description import Artifact
    from lq_plugin.artifacts.loading import load
    from lq_plugin.artifacts.signing import sign
    from lq_plugin.callbacks.dynamic import DynamicQuantization
    from lq_plugin.callbacks.evaluation import Int8Evaluation
    from lq_plugin.callbacks.export import ArtifactExport
    from lq_plugin.callbacks.static import StaticQuantization
    from lq_plugin.candidate import Candidate, DynamicCandidate, StaticCandidate
    from lq_plugin.evaluation.latency import Latency
    from lq_plugin.evaluation.metrics import evaluate
    from lq_plugin.exporting import export
    from lq_plugin.functional import calibrate, quantize
    from lq_plugin.graph.calibration import Calibration
    from lq_plugin.observers import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, PercentileObserver
    from lq_plugin.report.manifest import Manifest
    from lq_plugin.report.results import Results, find_results
    from lq_plugin.scheme import Scheme
    from lq_plugin.search.mixed_precision import Search
    from lq_plugin.search.sensitivity import sensitivity
    from lq_plugin.selection import Budget

__all__ = [
    "Artifact",
    "ArtifactExport",
    "Budget",
    "Calibration",
    "Candidate",
    "DynamicCandidate",
    "DynamicQuantization",
    "HistogramObserver",
    "Int8Evaluation",
    "Latency",
    "Manifest",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PercentileObserver",
    "Results",
    "Scheme",
    "Search",
    "StaticCandidate",
    "StaticQuantization",
    "calibrate",
    "evaluate",
    "export",
    "find_results",
    "load",
    "quantize",
    "sensitivity",
    "sign",
]

# Since 1.29, onnxruntime's official builds for Linux send names and hashes of each model that is opened to
# Microsoft, unless this is set before it is imported. A user's own value is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Imported when first used: a process that only loads an artifact needs neither Lightning nor torchao.
_HOMES = {
    "Artifact": "lq_plugin.artifacts.description",
    "ArtifactExport": "lq_plugin.callbacks.export",
    "Budget": "lq_plugin.selection",
    "Calibration": "lq_plugin.graph.calibration",
    "Candidate": "lq_plugin.candidate",
    "DynamicCandidate": "lq_plugin.candidate",
    "DynamicQuantization": "lq_plugin.callbacks.dynamic",
    "HistogramObserver": "lq_plugin.observers",
    "Int8Evaluation": "lq_plugin.callbacks.evaluation",
    "Latency": "lq_plugin.evaluation.latency",
    "Manifest": "lq_plugin.report.manifest",
    "MinMaxObserver": "lq_plugin.observers",
    "MovingAverageMinMaxObserver": "lq_plugin.observers",
    "PercentileObserver": "lq_plugin.observers",
    "Results": "lq_plugin.report.results",
    "Scheme": "lq_plugin.scheme",
    "Search": "lq_plugin.search.mixed_precision",
    "StaticCandidate": "lq_plugin.candidate",
    "StaticQuantization": "lq_plugin.callbacks.static",
    "calibrate": "lq_plugin.functional",
    "evaluate": "lq_plugin.evaluation.metrics",
    "export": "lq_plugin.exporting",
    "find_results": "lq_plugin.report.results",
    "load": "lq_plugin.artifacts.loading",
    "quantize": "lq_plugin.functional",
    "sensitivity": "lq_plugin.search.sensitivity",
    "sign": "lq_plugin.artifacts.signing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from lq_plugin.renamed import NAMES

        if name in NAMES:
            raise AttributeError(f"lq_plugin.{name} was renamed. Use lq_plugin.{NAMES[name]}.")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
