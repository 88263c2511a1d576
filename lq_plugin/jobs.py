"""What is asked for when training is over: candidates, each of one checkpoint."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lq_plugin.candidate import Candidate, DynamicCandidate, StaticCandidate
from lq_plugin.errors import CalibrationError, LqError
from lq_plugin.graph.calibration import Calibration, uncalibrated
from lq_plugin.graph.capture import Call
from lq_plugin.graph.soundness import warn_of_random_forward, warn_of_ranges
from lq_plugin.progress import note
from lq_plugin.scheme import Scheme
from lq_plugin.source import Source
from lq_plugin.store import Store


@dataclass(frozen=True)
class Job(ABC):
    """One candidate to make.

    Args:
        name: the candidate's.
        scheme: what is quantized and how.
        source: the weights to quantize.
        dynamic_dims: dynamic dimensions besides the batch, by input name.
        options: the exact configuration as builtins, for the manifest.
        example: a call of the target that was seen; else the first one in validation is taken.
        failure: why it is known already that there can be none.
    """

    name: str
    scheme: Scheme
    source: Source
    dynamic_dims: Mapping[str, Sequence[int]]
    options: Mapping[str, Any]
    example: Call | None = None
    failure: LqError | None = None

    @abstractmethod
    def candidate(self, store: Store) -> Candidate:
        """Make the candidate.

        Args:
            store: what earlier runs have finished of it.
        """
