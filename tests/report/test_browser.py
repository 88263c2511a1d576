"""The pages in a real browser, where Chromium is found on PATH or named by ``LQ_CHROMIUM``."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from damage.manifests import good

from docs.screenshots import DARK, chromium, opened
from lq_plugin.coverage import FloatOp
from lq_plugin.report import manifest, run_page
from lq_plugin.report.leaderboard import leaderboard, save
from lq_plugin.report.manifest import Manifest

BROWSER = chromium()
PROBE = Path(__file__).with_name("probe.js").read_text(encoding="utf-8")
WIDTHS = (360, 1300)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH, and LQ_CHROMIUM names none")
# Collects the answers of the pages in its frames.
FRAME = """<!DOCTYPE html><title>frames</title><body>{frames}<script>
const answers = [];
addEventListener("message", ({{ data }}) => {{
  answers.push(data);
  if (answers.length === {count}) document.body.textContent = JSON.stringify(answers);
}});
</script></body>"""


def probed(text: str) -> str:
    """The page with a second script, which its policy allows, too."""
    made = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{made}' ", 1)
    return text.replace("</body>", f"<script>{PROBE}</script></body>")


@cache
def content() -> Manifest:
    known = Manifest.from_json(good())
    static, failed = known.artifacts
    further = tuple(FloatOp(f"net.{n}.{'long' * 12}", "gelu", "no INT8 form " * 12) for n in range(2, 12))
    other = replace(static, format="openvino", latency_ms=None, sqnr_db=None, float_ops=static.float_ops + further)
    return replace(known, artifacts=(static, other, failed))


def pages(scratch: Path) -> list[str]:
    """The page of a run, and a leaderboard of two."""
    for name in ("a", "b" * 90):
        manifest.write(scratch / name / "quantized", content())
    return [run_page.render(content()), save(leaderboard(scratch), scratch).read_text(encoding="utf-8")]


@cache
def answers(dark: bool, title: str = "INT8 report: Net") -> list[dict[str, Any]]:
    """What the page of a title answers, in the order of ``WIDTHS``."""
    return sorted((made for made in asked(dark) if made["title"] == title), key=lambda made: int(made["width"]))


@cache
def asked(dark: bool) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        frames = [
            f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(probed(page))}"></iframe>'
            for page in pages(Path(scratch))
            for width in WIDTHS
        ]
        outer = Path(scratch, "frames.html")
        outer.write_text(FRAME.format(frames="".join(frames), count=len(frames)), encoding="utf-8")
        assert BROWSER is not None
        options = ("--dump-dom", "--virtual-time-budget=8000", "--window-size=1400,1000", "--enable-logging=stderr")
        done = opened(BROWSER, outer, *options, *([DARK] if dark else []))
    assert ":CONSOLE" not in done.stderr, done.stderr
    body = re.search("<body>(.*?)</body>", done.stdout, re.DOTALL)
    assert body is not None
    return list(json.loads(html.unescape(body[1])))


@pytest.mark.parametrize("title", ["INT8 report: Net", "INT8 leaderboard"])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_is_as_wide_as_the_window_and_its_text_stands_out(dark: bool, title: str) -> None:
    for answer, width in zip(answers(dark, title), WIDTHS, strict=True):
        assert (answer["width"], answer["content"], answer["dark"]) == (width, width, dark)
        assert answer["wide"] == 0  # every table scrolls in a container of its own
        assert answer["faint"] == []


def test_every_figure_that_a_browser_reads_is_the_manifests() -> None:
    known = content()
    wanted = {value for entry in known.artifacts for value in entry.metrics.values()}
    wanted |= {entry.median for entry in known.artifacts if entry.median} | set(known.fp32.latency_ms.values())
    assert {value for value in wanted if value < float("inf")} <= set(map(float, answers(False)[0]["figures"]))


def test_a_click_on_a_heading_sorts_and_what_is_missing_comes_last() -> None:
    for answer in answers(False):
        (up, rising), (down, falling) = answer["orders"]
        assert (up, down) == ("ascending", "descending")
        known = sorted([content().artifacts[0].median or 0, *content().fp32.latency_ms.values()])
        assert [value and float(value) for value in rising] == [*known, None, None]
        assert [value and float(value) for value in falling] == [*reversed(known), None, None]


def test_filters_show_what_was_asked_for() -> None:
    for answer in answers(False):
        (shown,) = answer["filters"].values()
        assert len(shown["all"]) == 12
        assert shown["float"] == [name for name in shown["all"] if name != "net.0"]
        assert (shown["found"], shown["said"]) == (["net.0"], "1 of 12")


def test_code_is_copied_or_selected_to_be_copied() -> None:
    for answer in answers(False):
        assert len(answer["copies"]) == 2
        for said, selected, code in answer["copies"]:
            assert "lq_plugin.load('quantized/static/onnx')" in code
            assert said == "Copied" or (said, selected) == ("Press Ctrl+C", code)
        said, handed, code = answer["copied"]
        assert (said, handed) == ("Copied", [code])
