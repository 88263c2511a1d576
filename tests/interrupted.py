"""A run of the pipeline that writes down what it has done and kills itself where it is told to; see test_pipeline.py.

``python interrupted.py FOLDER STORE [STEP NUMBER]``: killed when a step begins for so many times.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from test_trials import OneBadLayer, plan

from lq_plugin import Scheme, Search, exporting, jobs, pipeline, refinement, trials
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.evaluation import compare
from lq_plugin.evaluation.compare import Inputs, Protocol, Subject
from lq_plugin.evaluation.latency import Latency, Timing
from lq_plugin.pipeline import finish
from lq_plugin.report.manifest import EAGER
from lq_plugin.store import Store

STEPS: Mapping[str, tuple[Any, str]] = {  # a function of each step, by where it is called
    "calibration": (jobs, "calibrate_pass"),
    "algorithms": (refinement, "_tried"),
    "export": (exporting, "export_one"),
    "latency": (compare, "_time"),
    "evaluation": (compare, "_score"),
    "sensitivity": (trials, "ranked"),
    "search": (trials, "validated"),
    "report": (pipeline.manifest, "write"),
}


def watch(log: Path, step: str, number: int) -> None:
    """Write down every step that ends, and be killed when one begins."""
    begun = dict.fromkeys(STEPS, 0)

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "evaluation" and args[2] is None:  # FP32 is always evaluated
                return function(*args, **kwargs)
            begun[name] += 1
            if (name, begun[name]) == (step, number):
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            with log.open("a") as file:
                file.write(f"{name}\n")
            return result

        return call

    for name, (owner, attribute) in STEPS.items():
        setattr(owner, attribute, watched(name, getattr(owner, attribute)))


def timings(subject: Subject, inputs: Inputs, options: Latency) -> dict[str, Timing]:
    """Latencies without the seconds that processes need to start; what the artifacts compute is real."""
    lanes = {name: Timing(1.0, 1.5, 3) for name in (EAGER, FORMATS["pt2"].lane)}
    outputs = {entry.label: tuple(subject.load(entry).run(list(inputs.flat))) for entry in subject.entries}
    return lanes | {label: Timing(0.5, 0.7, 3, outputs=each) for label, each in outputs.items()}


def run(folder: Path, store: Path, step: str = "", number: str = "0") -> None:
    """A static candidate with an algorithm, over its budget, with a search for mixed precision."""
    compare._time = timings
    watch(store.with_suffix(".log"), step, int(number))
    scheme = Scheme(algorithms=("sequential",))
    made = plan(folder, Search(max_trials=2), 1e-4, scheme, OneBadLayer, formats=["pt2"])
    finish(replace(made, protocol=Protocol(["validate"], latency=Latency(threads=1))), Store(store))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
