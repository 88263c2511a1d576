"""INT8 for PyTorch Lightning: calibrated in the training loop, measured on what ships."""

from lq_plugin.artifacts.base import Artifact, export, load
from lq_plugin.callbacks.evaluation import Int8Evaluation
from lq_plugin.callbacks.export import ArtifactExport
from lq_plugin.callbacks.static import StaticQuantization
from lq_plugin.candidate import Candidate, calibrate, quantize
from lq_plugin.evaluation.latency import Latency
from lq_plugin.evaluation.metrics import evaluate
from lq_plugin.graph.calibration import Calibration
from lq_plugin.observers import Histogram, MinMax, MovingAverage, Percentile
from lq_plugin.scheme import Scheme
from lq_plugin.selection import Budget

__all__ = [
    "Artifact",
    "ArtifactExport",
    "Budget",
    "Calibration",
    "Candidate",
    "Histogram",
    "Int8Evaluation",
    "Latency",
    "MinMax",
    "MovingAverage",
    "Percentile",
    "Scheme",
    "StaticQuantization",
    "calibrate",
    "evaluate",
    "export",
    "load",
    "quantize",
]
