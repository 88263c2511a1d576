"""``leaderboard.html``: the artifacts of many runs side by side, as a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lq_plugin.report.board import Leaderboard
from lq_plugin.report.details import Section
from lq_plugin.report.page import rendered
from lq_plugin.report.scatter import scatters

TEMPLATE = "leaderboard.html"


def render(board: Leaderboard, distinctions: Mapping[str, str], details: Mapping[str, Sequence[Section]]) -> str:
    """Return the page.

    Args:
        board: what to show.
        distinctions: what sets each run apart.
        details: what INT8 costs in each run, and what was done about it.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    numbered = list(enumerate(board.ranked, start=1))
    judged = [row.budget.metric for row in board.artifacts if row.budget.metric]
    names = [name for row in (*board.fp32, *board.artifacts) for name in row.entry.metrics]
    return rendered(
        TEMPLATE,
        "The leaderboard's page",
        board=board,
        rows=numbered,
        runs=len({job.run for job in board.jobs}),
        told={run: what for run, what in distinctions.items() if what},
        metrics=[name for name in dict.fromkeys((*judged, *names)) if name in names],  # those that judged come first
        cpus=list(dict.fromkeys(row.cpu for row in board.artifacts)),
        statuses=sorted({row.entry.status.replace("_", " ") for row in board.artifacts}),
        scatters=scatters([(str(number), row) for number, row in numbered], [("", row) for row in board.fp32]),
        details=details,
    )
