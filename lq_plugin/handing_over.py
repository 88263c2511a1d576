"""What the folder of each artifact gets when nothing is measured any more: what it says of itself, and a signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lq_plugin import hub
from lq_plugin.artifacts import signing
from lq_plugin.artifacts.layout import HUGGINGFACE
from lq_plugin.plan import Plan
from lq_plugin.report import readme
from lq_plugin.report.limits import LONGEST_VALUE
from lq_plugin.report.manifest import Entry, Manifest
from lq_plugin.steps import Step, attempt


def hand_over(plan: Plan, folder: Path, content: Manifest) -> Mapping[str, tuple[str, ...]]:
    """Complete the folders of a run's artifacts; what fails for one of them is logged, and stops nothing.

    Args:
        plan: of the run.
        folder: the manifest's.
        content: the manifest.

    Returns:
        What failed, as sentences, by the candidate's name.
    """
    failed: dict[str, tuple[str, ...]] = {}
    key = plan.sign
    signer = None if key is None else attempt("no artifact is signed", lambda: signing.private(key, "sign"))
    for entry in content.artifacts:
        for what, make, needs in _steps(plan, folder, content, entry, signer):
            step = attempt(what, make, *needs)
            if step.error is not None:
                said = (*failed.get(entry.candidate, ()), f"{what}. {step.reason}"[:LONGEST_VALUE])
                failed[entry.candidate] = said
    return failed


def _steps(
    plan: Plan, folder: Path, content: Manifest, entry: Entry, signer: Step[Any] | None
) -> Iterator[tuple[str, Callable[[], object], tuple[Step[Any], ...]]]:
    """What is done for an artifact, and what that needs; the signature comes last, because it is of all the rest."""
    if entry.path is None:
        return
    place, label = folder / entry.path, entry.label
    front = partial(hub.metadata, entry) if plan.layout == HUGGINGFACE else str
    yield f"{label} has no {readme.FILE}", lambda: readme.write(folder, entry, content, front()), ()
    if plan.layout == HUGGINGFACE:
        source = next(job.source for job in plan.jobs if job.name == entry.candidate)
        yield f"{label} has no {hub.CONFIG}", lambda: hub.write_configuration(place, source.float_target), ()
    if signer is not None:
        yield f"{label} is not signed", lambda: signing.write(place, signer.result), (signer,)
