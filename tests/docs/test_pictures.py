"""Pictures are described, used, readable in the dark, and draw the figures that they name as their source."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
NAMES = sorted(file.name for file in (DOCS / "pictures").iterdir())
SVG = "{http://www.w3.org/2000/svg}"
TIMES = re.compile(r"[\d.]+ → [\d.]+ ms")
STEPS = 20


def lstm_times() -> list[str]:
    """Float and INT8 on onnxruntime for each width, as the recipe's card has them."""
    rows = (ROOT / "recipes" / "lstm_demo" / "README.md").read_text(encoding="utf-8").splitlines()
    return [TIMES.findall(row)[0] for row in rows if TIMES.search(row)]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_described_and_used(name: str) -> None:
    text = (DOCS / "pictures" / name).read_text(encoding="utf-8")
    described = ElementTree.fromstring(text)
    assert all(described.findtext(f"{SVG}{part}") for part in ("title", "desc"))
    assert "prefers-color-scheme: dark" in text
    assert re.search(rf"!\[[^\]]{{40,}}\]\(pictures/{name}\)", PAGE)


def test_the_page_quotes_the_recipe() -> None:
    quoted = TIMES.findall(PAGE)
    assert quoted
    assert set(quoted) <= {*lstm_times()}


def test_the_curves_are_those_of_the_recipe() -> None:
    picture = ElementTree.parse(DOCS / "pictures" / "lstm.svg").getroot()
    assert TIMES.findall(picture.findtext(f"{SVG}desc") or "") == lstm_times()
    curves = [path.get("d", "").split() for path in picture.iter(f"{SVG}path") if len(path.get("d", "").split()) > 8]
    heights = [float(y) for curve in curves for y in curve[1::2]]
    times = [float(times.split()[column]) for column in (0, 2) for times in lstm_times()]
    assert [heights.index(y) for y in sorted(heights, reverse=True)] == [times.index(time) for time in sorted(times)]
