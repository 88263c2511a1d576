"""Every error the plugin raises on purpose.

::

    LqError
    ├── ConfigError (ValueError)      an argument or option that cannot work; raised as early as it can be known
    │   └── UnsupportedError          a model cannot be quantized as asked, or a format cannot hold a candidate
    ├── MissingExtraError (ImportError)   an optional dependency is needed and not installed
    ├── CaptureError (RuntimeError)   the target could not be turned into a graph
    ├── CalibrationError (RuntimeError)   no statistics could be gathered
    ├── ExportError (RuntimeError)    a runtime's exporter refused the candidate
    ├── EvaluationError (RuntimeError)    no artifact could be evaluated or judged
    └── ArtifactError (RuntimeError)  an artifact on disk is missing, changed, or called differently than captured

A message says which argument, what was given, what is allowed and how to fix it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class LqError(Exception):
    """Base of every error raised by lq_plugin."""


class ConfigError(LqError, ValueError):
    """An argument or option cannot work."""


class UnsupportedError(ConfigError):
    """A model cannot be quantized as asked, or a format cannot hold a candidate.

    No argument is wrong in itself: nothing in the model can be quantized, the modules to quantize are never called, or
    a runtime has no equivalent. It never stops the other candidates and formats.
    """


class MissingExtraError(LqError, ImportError):
    """A feature needs an optional dependency that is not installed."""


class CaptureError(LqError, RuntimeError):
    """The target's forward could not be captured as a graph."""


class CalibrationError(LqError, RuntimeError):
    """No usable statistics could be gathered."""


class ExportError(LqError, RuntimeError):
    """A candidate could not be exported for one runtime."""


class EvaluationError(LqError, RuntimeError):
    """The artifacts were made and could not be evaluated, or the budget could not be judged."""


class ArtifactError(LqError, RuntimeError):
    """An artifact on disk cannot be used as asked."""


def is_mistake(error: BaseException) -> bool:
    """Whether an error is the user's, rather than a limit of the model or of a runtime."""
    return isinstance(error, ConfigError) and not isinstance(error, UnsupportedError)


def as_calibration_error(error: Exception) -> LqError:
    """Return one of our errors as it is, and any other as the cause of a :class:`CalibrationError`."""
    if isinstance(error, LqError):
        return error
    named = CalibrationError(f"calibration: {error}")
    named.__cause__ = error
    return named


def unknown_name(argument: str, given: str, allowed: Iterable[str]) -> ConfigError:
    """Build the error for a name outside a fixed set, with the nearest valid names first."""
    names = sorted(allowed)
    nearest = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
    return ConfigError(f"{argument}: {given!r} is unknown. {hint}Allowed: {', '.join(map(repr, names))}.")


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingExtraError: naming the extra that brings the dependency.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {module!r}, which cannot be imported ({error}). "
            f"Install it with: pip install 'lq_plugin[{extra}]'"
        ) from error
