"""Pages quote the speed benchmark as it is."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
SPEED = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
PAGE = (DOCS / "guides" / "sequences.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row, by the first one."""
    cells = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    return {first: rest for first, *rest in cells}


def test_sequence_models_quote_lanes() -> None:
    sections = re.findall(r"^### (.+)\n\n(\|(?:.+\n)+)", PAGE, re.MULTILINE)
    assert len(sections) == 4
    for model, table in sections:
        measured = rows(re.search(rf"^### {re.escape(model)}, .+, with VNNI\n\n((?:.+\n)+)", SPEED, re.MULTILINE)[1])
        for lane, (one, eight, *noise) in list(rows(table).items())[2:]:
            assert [one, eight] == [time.split()[0] for time in measured[lane][:2]], (model, lane)
            assert not noise or noise == measured[lane][2:3], (model, lane)
