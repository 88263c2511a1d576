"""Messages of other packages that no user can act on, kept from being printed while our own calls run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = (
    "torchao",  # GPU libraries that a CPU build of torch cannot load
    "torch.utils._pytree",  # a registration inside torchao that torch will change
    "torch.onnx",  # progress and version notes of the exporter
    "onnxscript",  # optimizer notes
    "onnx_ir",  # optimizer notes
    "torch.export",  # advice on its own exceptions, which are explained in our errors
    "torch.fx",  # symbols of a capture that failed
    "mlflow",  # progress of what is sent to it
)
WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r".*isinstance\(treespec, LeafSpec\).*"),  # torch copying its own graph
    (DeprecationWarning, r".*"),  # inside torch, onnx and openvino; none of them reaches the user's own code
    (UserWarning, r"The tensor attributes? .* assigned during export.*"),  # caches of masks and positions
    (UserWarning, r".*Any type hint is inferred as AnyType.*"),  # MLflow importing its own classes
)


@contextmanager
def muted() -> Iterator[None]:
    """Keep known messages of torch, torchao, onnx, onnxscript and MLflow from being printed inside the block."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category, message in WARNINGS:
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
